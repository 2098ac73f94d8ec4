//! `GET /docs`: the OpenAPI document as a page for people, rendered here once, without scripts.

use std::sync::LazyLock;

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tera::{Context, Tera};

use super::openapi::DOCUMENT;

static PAGE: LazyLock<String> =
    LazyLock::new(|| render(&DOCUMENT.0).expect("the built-in page is checked by a test"));

/// The page needs nothing from anywhere, and nobody may frame it.
const HEADERS: [(HeaderName, &str); 3] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
];

/// This document as a page to read.
#[utoipa::path(get, path = "/docs", tag = "operation", operation_id = "docs",
    responses((status = 200, description = "The page", content_type = "text/html", body = String)))]
pub async fn docs() -> impl IntoResponse {
    (HEADERS, Html(PAGE.as_str()))
}

#[derive(Serialize)]
struct Section {
    name: String,
    description: String,
    operations: Vec<OperationView>,
}

#[derive(Serialize)]
struct OperationView {
    id: String,
    method: String,
    path: String,
    summary: String,
    description: String,
    /// `API key`, `admin token`, or nothing.
    credential: String,
    parameters: Vec<FieldView>,
    body: Option<TypeView>,
    answers: Vec<AnswerView>,
}

#[derive(Serialize)]
struct AnswerView {
    status: String,
    description: String,
    schema: TypeView,
    is_error: bool,
}

#[derive(Serialize)]
struct SchemaView {
    name: String,
    description: String,
    fields: Vec<FieldView>,
    /// What it is, if it has no fields; what it has beside them, if that stands elsewhere.
    of: TypeView,
    /// As indented JSON.
    example: Option<String>,
}

#[derive(Serialize)]
struct FieldView {
    name: String,
    of: TypeView,
    required: bool,
    description: String,
}

/// A type in words; `link` is the schema on this page that says more.
#[derive(Serialize, Default)]
struct TypeView {
    words: String,
    link: Option<String>,
}

fn render(document: &Value) -> Result<String, tera::Error> {
    let mut pages = Tera::default();
    pages.add_raw_template("docs.html", include_str!("../../templates/pages/docs.html"))?;
    let mut context = Context::new();
    context.insert("title", &text(&document["info"], "title"));
    context.insert("version", &text(&document["info"], "version"));
    context.insert("introduction", &paragraphs(&text(&document["info"], "description")));
    context.insert("sections", &sections(document));
    let schemas = &document["components"]["schemas"];
    let schemas: Vec<_> = entries(schemas).map(|(name, schema)| named(name, schema)).collect();
    context.insert("schemas", &schemas);
    pages.render("docs.html", &context)
}

/// HTML of a text in which backticks stand around code.
fn html(text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let mut html = String::with_capacity(escaped.len());
    for (n, part) in escaped.split('`').enumerate() {
        match n % 2 {
            0 => html.push_str(part),
            _ => html.extend(["<code>", part, "</code>"]),
        }
    }
    html
}

/// A description's HTML.
fn told(value: &Value) -> String {
    html(&text(value, "description"))
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().trim().to_owned()
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The paragraphs and list items of the little Markdown that the document's introduction is in.
fn paragraphs(markdown: &str) -> Vec<String> {
    let items = markdown.replace("\n- ", "\n\n").replace("**", "");
    items
        .split("\n\n")
        .map(|item| html(&item.trim_start_matches("- ").replace('\n', " ")))
        .collect()
}

fn sections(document: &Value) -> Vec<Section> {
    list(&document["tags"])
        .map(|tag| {
            let name = text(tag, "name");
            let operations = entries(&document["paths"])
                .flat_map(|(path, item)| {
                    entries(item).map(move |(method, operation)| (path, method, operation))
                })
                .filter(|(_, _, operation)| list(&operation["tags"]).any(|tag| *tag == *name))
                .map(|(path, method, operation)| view(path, method, operation))
                .collect();
            Section { description: told(tag), operations, name }
        })
        .collect()
}

fn view(path: &str, method: &str, operation: &Value) -> OperationView {
    let credentials =
        list(&operation["security"]).flat_map(|one| entries(one).map(|(name, _)| name));
    let body = operation["requestBody"]["content"].get("application/json");
    OperationView {
        id: text(operation, "operationId"),
        method: method.to_uppercase(),
        path: path.to_owned(),
        summary: html(&text(operation, "summary")),
        description: told(operation),
        credential: credentials.map(|name| name.replace('_', " ")).collect::<Vec<_>>().join(", "),
        parameters: list(&operation["parameters"])
            .map(|parameter| FieldView {
                name: text(parameter, "name"),
                of: of(&parameter["schema"]),
                required: parameter["required"] == true,
                description: told(parameter),
            })
            .collect(),
        body: body.map(|body| of(&body["schema"])),
        answers: entries(&operation["responses"])
            .map(|(status, answer)| AnswerView {
                is_error: !status.starts_with('2'),
                status: status.clone(),
                description: told(answer),
                schema: entries(&answer["content"])
                    .next()
                    .map(|(_, content)| of(&content["schema"]))
                    .unwrap_or_default(),
            })
            .collect(),
    }
}

fn named(name: &str, schema: &Value) -> SchemaView {
    let mut fields = Vec::new();
    for part in list(&schema["allOf"]).chain([schema]) {
        let required: Vec<_> = list(&part["required"]).collect();
        fields.extend(entries(&part["properties"]).map(|(name, field)| FieldView {
            required: required.contains(&&Value::from(name.as_str())),
            name: name.clone(),
            of: of(field),
            description: told_of(field),
        }));
    }
    SchemaView {
        name: name.to_owned(),
        description: told(schema),
        of: if fields.is_empty() { of(schema) } else { all_of(schema) },
        example: schema["example"].as_object().map(|example| format!("{:#}", json!(example))),
        fields,
    }
}

/// The schema whose fields this one has too.
fn all_of(schema: &Value) -> TypeView {
    let whole = list(&schema["allOf"]).map(of).find(|part| part.link.is_some());
    whole.map_or_else(TypeView::default, |whole| TypeView {
        words: format!("All of {}, and:", whole.words),
        ..whole
    })
}

/// A field's description, which stands beside the type if the field may be null.
fn told_of(field: &Value) -> String {
    let choices = list(&field["oneOf"]);
    let told = [field].into_iter().chain(choices).map(told);
    told.into_iter().find(|told| !told.is_empty()).unwrap_or_default()
}

/// A schema in words: its type, its limits, and the name of another schema if it is that.
fn of(schema: &Value) -> TypeView {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return TypeView { words: name.to_owned(), link: Some(name.to_owned()) };
    }
    let several = ["oneOf", "anyOf", "allOf"].iter().flat_map(|of| list(&schema[of]));
    let choices = several.map(of);
    let mut link = None;
    let mut words: Vec<String> = choices
        .map(|choice| {
            link = link.take().or(choice.link);
            choice.words
        })
        .collect();
    words.retain(|words| !words.is_empty());
    let item = (!schema["items"].is_null()).then(|| of(&schema["items"]));
    let own = own_type(schema, item.as_ref());
    let link = link.or(item.and_then(|item| item.link));
    words.extend(Some(own).filter(|own| !own.is_empty()));
    TypeView { words: words.join(" or ") + &limits(schema), link }
}

fn own_type(schema: &Value, item: Option<&TypeView>) -> String {
    if let Some(values) = schema["enum"].as_array() {
        let values =
            values.iter().map(|value| value.as_str().map_or("null".into(), |v| format!("\"{v}\"")));
        return values.collect::<Vec<_>>().join(" or ");
    }
    let types: Vec<_> = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        many => list(many).filter_map(Value::as_str).collect(),
    };
    let words = types.into_iter().map(|name| match (name, item) {
        ("array", Some(item)) => format!("list of {}", item.words),
        ("string", _) if schema["format"] == "date-time" => "time".to_owned(),
        (name, _) => name.to_owned(),
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn limits(schema: &Value) -> String {
    let said = [
        ("minimum", "from"),
        ("maximum", "to"),
        ("minItems", "from"),
        ("maxItems", "to"),
        ("maxLength", "at most"),
        ("default", "default"),
    ];
    let said: Vec<_> = said
        .iter()
        .filter(|(field, _)| !schema[field].is_null())
        .map(|(field, word)| format!("{word} {}", schema[field]))
        .collect();
    let unit = if schema["maxLength"].is_null() { "" } else { " characters" };
    if said.is_empty() { String::new() } else { format!(", {}{unit}", said.join(" ")) }
}
