//! What the mails say: built-in templates, each replaceable by the operator's own file.

use std::borrow::Cow;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;
use tera::{Context, Tera};

use super::message::MAX_SUBJECT_CHARS;
use super::text::one_line;
use super::{filters, samples};
use crate::domain::notice::NoticeMail;

macro_rules! built_in {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../templates/", $name)))),*]
    };
}

/// Every template, by the path it has below `TOLLGATE_TEMPLATES` too.
const BUILT_IN: [(&str, &str); 10] = built_in![
    "mail/base.html",
    "mail/usage_nudge/subject.txt",
    "mail/usage_nudge/body.txt",
    "mail/usage_nudge/body.html",
    "mail/cap_reached/subject.txt",
    "mail/cap_reached/body.txt",
    "mail/cap_reached/body.html",
    "mail/plan_upgraded/subject.txt",
    "mail/plan_upgraded/body.txt",
    "mail/plan_upgraded/body.html",
];

/// Longest subject or body a template may make, in bytes. Gmail hides what is above 102 kB.
const MAX_RENDERED_BYTES: usize = 100 * 1024;
/// Longest name or other text given to a template, in characters; links are never cut.
const MAX_FACT_CHARS: usize = 200;

/// A mail's three texts. They name a person, so there is no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedMail {
    /// One line, not empty.
    pub subject: String,
    pub text: String,
    pub html: String,
}

/// A template is missing, cannot be read, or does not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template {file}: {problem}")]
pub struct TemplateError {
    /// The template's path below `TOLLGATE_TEMPLATES`, or the path that could not be read.
    pub file: String,
    pub problem: String,
}

impl TemplateError {
    fn new(file: impl Into<String>, problem: impl ToString) -> Self {
        Self { file: file.into(), problem: problem.to_string() }
    }
}

/// The mails' templates, parsed and tried out.
pub struct Templates {
    tera: Tera,
}

type Source<'a> = (&'a str, Cow<'a, str>);

impl Templates {
    /// Loads the built-in templates, replaces those that have a file below `overrides`
    /// (`mail/usage_nudge/body.html`), and renders every sample once.
    pub fn load(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let own = overrides.map(read_overrides).transpose()?.unwrap_or_default();
        let tera = parse(&own).map_err(|error| TemplateError::new(culprit(&own), error))?;
        let templates = Self { tera };
        templates.check()?;
        Ok(templates)
    }

    /// Renders every mail in every shape it can have.
    pub fn check(&self) -> Result<(), TemplateError> {
        samples::all().iter().try_for_each(|sample| self.render(&sample.mail).map(drop))
    }

    /// The mail's subject and bodies. The error does not repeat the facts.
    pub fn render(&self, mail: &NoticeMail) -> Result<RenderedMail, TemplateError> {
        let kind = directory(mail);
        let facts = serde_json::to_value(mail).map_err(|error| TemplateError::new(kind, error))?;
        let facts = cleaned("", facts);
        let context =
            Context::from_serialize(&facts).map_err(|error| TemplateError::new(kind, error))?;
        let part = |part: &str, tidy: fn(&str) -> String| {
            let file = format!("mail/{kind}/{part}");
            match self.render_one(&file, &context).map(|text| tidy(&text)) {
                Ok(text) if text.is_empty() => Err(TemplateError::new(file, "renders to nothing")),
                Ok(text) => Ok(text),
                Err(error) => Err(TemplateError::new(file, error)),
            }
        };
        Ok(RenderedMail {
            subject: part("subject.txt", |text| one_line(text, MAX_SUBJECT_CHARS))?,
            text: part("body.txt", paragraphs)?,
            html: part("body.html", paragraphs)?,
        })
    }

    fn render_one(&self, file: &str, context: &Context) -> Result<String, tera::Error> {
        let mut output = Limited(Vec::new());
        self.tera.render_to(file, context, &mut output)?;
        Ok(String::from_utf8(output.0)?)
    }
}

fn directory(mail: &NoticeMail) -> &'static str {
    match mail {
        NoticeMail::UsageNudge(_) => "usage_nudge",
        NoticeMail::CapReached(_) => "cap_reached",
        NoticeMail::PlanUpgraded(_) => "plan_upgraded",
    }
}

/// Parses the built-in templates with `own` in place of their namesakes, all at once: they refer
/// to each other. Names ending in `.html` are escaped, the others are not.
fn parse(own: &[Source<'_>]) -> Result<Tera, tera::Error> {
    let mut tera = Tera::new();
    filters::register(&mut tera);
    tera.add_raw_templates(BUILT_IN.map(|(name, source)| {
        let replaced = own.iter().find(|(own, _)| *own == name);
        (name, replaced.map_or(source, |(_, source)| source))
    }))?;
    Ok(tera)
}

/// Which of the operator's templates does not parse: the first that fails by itself among the
/// built-in ones, or all of them where only their combination does.
fn culprit(own: &[Source<'_>]) -> String {
    let alone = own.iter().find(|source| parse(std::slice::from_ref(source)).is_err());
    match alone {
        Some((name, _)) => (*name).to_owned(),
        None => own.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    }
}

/// Reads those of the operator's files that replace a template. A file that replaces nothing is a
/// misspelt name, and an error.
fn read_overrides(directory: &Path) -> Result<Vec<Source<'static>>, TemplateError> {
    let unreadable =
        |path: &Path, error: io::Error| TemplateError::new(path.display().to_string(), error);
    let mut names = Vec::new();
    // Fails if the directory does not exist; only its `mail` directory is ours.
    fs::read_dir(directory).map_err(|error| unreadable(directory, error))?;
    let mail = directory.join("mail");
    if mail.is_dir() {
        list(&mail, "mail", &mut names).map_err(|error| unreadable(&mail, error))?;
    }
    let mut own = Vec::with_capacity(names.len());
    for name in names {
        let Some((known, _)) = BUILT_IN.iter().find(|(known, _)| *known == name) else {
            let known = BUILT_IN.map(|(known, _)| known).join(", ");
            return Err(TemplateError::new(
                name,
                format!("replaces no template; there are {known}"),
            ));
        };
        let path = directory.join(known);
        let source = fs::read_to_string(&path).map_err(|error| unreadable(&path, error))?;
        own.push((*known, Cow::Owned(source)));
    }
    Ok(own)
}

/// Collects the files below `directory` as `prefix/…`, without hidden files and editors' backups.
fn list(directory: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name.ends_with('~') {
            continue;
        }
        let name = format!("{prefix}/{name}");
        if entry.path().is_dir() {
            list(&entry.path(), &name, names)?;
        } else {
            names.push(name);
        }
    }
    names.sort();
    Ok(())
}

/// The facts with every text on one line: a name must not be able to start a line of its own.
fn cleaned(key: &str, value: Value) -> Value {
    match value {
        Value::String(text) => {
            let max = if key.ends_with("url") { usize::MAX } else { MAX_FACT_CHARS };
            Value::String(one_line(&text, max))
        }
        Value::Array(values) => values.into_iter().map(|value| cleaned(key, value)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                let value = cleaned(&key, value);
                (key, value)
            })
            .collect(),
        other => other,
    }
}

/// Lines without trailing space and at most one empty line in a row, so that conditions in a
/// template leave no holes.
fn paragraphs(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    for line in text.trim().lines().map(str::trim_end) {
        if !(line.is_empty() && tidy.ends_with("\n\n")) {
            tidy.push_str(line);
            tidy.push('\n');
        }
    }
    tidy
}

/// Stops a template that does not stop by itself.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_RENDERED_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
