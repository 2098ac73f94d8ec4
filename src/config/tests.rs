//! Where values come from, and how mistakes are told.

use proptest::prelude::*;

use super::variables::FILE_SUFFIX;
use super::*;

mod values;

const EXAMPLE: &str = include_str!("../../.env.example");

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(&environment(pairs), None)
}

fn load_dotenv(pairs: &[(&str, &str)], text: &str) -> Result<Config, ConfigErrors> {
    Config::load(&environment(pairs), Some((Path::new(".env"), text)))
}

fn exposed(secrets: &[SecretString]) -> Vec<&str> {
    secrets.iter().map(|secret| secret.expose_secret()).collect()
}

/// A file in a directory that lives as long as the answer.
fn file(content: &[u8]) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (directory, path)
}

#[test]
fn without_any_variable_everything_has_its_default() {
    let config = load(&[]).unwrap();
    assert_eq!(config.database_url.expose_secret(), "sqlite://tollgate.db");
    assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.public_url, "http://127.0.0.1:8080");
    assert_eq!(config.plans_path, Path::new("plans.toml"));
    assert_eq!(config.stripe_api_base, "https://api.stripe.com");
    assert_eq!((config.log_filter.as_str(), config.log_format), ("info", LogFormat::Text));
    assert!(config.api_key.is_none() && config.admin_token.is_none());
    assert!(config.signing_keys.is_empty() && config.return_origins.is_empty());
    assert_eq!((config.rate_limit, config.livemode()), (None, None));
    let idle = config.idle_parts().join("\n");
    for variable in ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET", "SMTP_URL"] {
        assert!(idle.contains(variable), "{variable}");
    }
}

/// One good value for each variable.
fn full(templates: &str) -> Vec<(&'static str, String)> {
    [
        ("DATABASE_URL", "postgres://tollgate:canary-db@db/tollgate"),
        ("TOLLGATE_LISTEN", "[::1]:9000"),
        ("TOLLGATE_PUBLIC_URL", "https://Example.com/billing"),
        ("TOLLGATE_PLANS", "/etc/tollgate/plans.toml"),
        ("TOLLGATE_API_KEY", "canary-api-key-1"),
        ("TOLLGATE_ADMIN_TOKEN", "canary-admin-tok"),
        ("TOLLGATE_SIGNING_KEY", "canary-signing-1, canary-signing-2"),
        ("STRIPE_SECRET_KEY", "rk_live_canary"),
        ("STRIPE_WEBHOOK_SECRET", "whsec_canary1,whsec_canary2"),
        ("STRIPE_API_BASE", "http://127.0.0.1:12111"),
        ("SMTP_URL", "smtps://user:canary-smtp@mail.example.com"),
        ("MAIL_FROM", "Example <billing@example.com>"),
        ("TOLLGATE_TEMPLATES", templates),
        ("TOLLGATE_OUTAGE_JOURNAL", "/var/lib/tollgate/outage"),
        ("TOLLGATE_RATE_LIMIT", "500"),
        ("TOLLGATE_RETURN_ORIGINS", "https://app.example.com, http://localhost:3000"),
        ("RUST_LOG", "warn,tollgate=debug"),
        ("TOLLGATE_LOG_FORMAT", "json"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

fn check_full(config: &Config, templates: &Path) {
    assert!(config.database_url.expose_secret().contains("canary-db"));
    assert_eq!(config.listen.to_string(), "[::1]:9000");
    assert_eq!(config.public_url, "https://example.com/billing");
    assert_eq!(config.plans_path, Path::new("/etc/tollgate/plans.toml"));
    assert_eq!(config.api_key.as_ref().unwrap().expose_secret(), "canary-api-key-1");
    assert_eq!(config.admin_token.as_ref().unwrap().expose_secret(), "canary-admin-tok");
    assert_eq!(exposed(&config.signing_keys), ["canary-signing-1", "canary-signing-2"]);
    assert_eq!(config.livemode(), Some(true));
    assert_eq!(exposed(&config.stripe_webhook_secrets), ["whsec_canary1", "whsec_canary2"]);
    assert_eq!(config.stripe_api_base, "http://127.0.0.1:12111");
    assert!(config.smtp_url.as_ref().unwrap().expose_secret().starts_with("smtps://"));
    assert_eq!(config.mail_from.as_deref(), Some("Example <billing@example.com>"));
    assert_eq!(config.templates_dir.as_deref(), Some(templates));
    assert_eq!(config.outage_journal, Path::new("/var/lib/tollgate/outage"));
    assert_eq!(config.rate_limit, Some(500));
    assert_eq!(config.return_origins, ["https://app.example.com", "http://localhost:3000"]);
    assert_eq!(config.log_filter, "warn,tollgate=debug");
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(config.otel_endpoint.as_deref(), Some("http://localhost:4318"));
    let idle = config.idle_parts().join("\n");
    assert!(idle.contains("OTEL_EXPORTER_OTLP_ENDPOINT") && !idle.contains("is not set"), "{idle}");
}

#[test]
fn every_variable_is_read_from_the_environment_from_dotenv_and_from_its_twin() {
    let directory = tempfile::tempdir().unwrap();
    let full = full(directory.path().to_str().unwrap());
    let names: Vec<_> = full.iter().map(|(name, _)| *name).collect();
    let known: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(names, known, "this test has a value for each");

    let pairs: Vec<_> = full.iter().map(|(name, value)| (*name, value.as_str())).collect();
    check_full(&load(&pairs).unwrap(), directory.path());

    let dotenv: String = full.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
    check_full(&load_dotenv(&[], &dotenv).unwrap(), directory.path());

    let twins: BTreeMap<String, String> = full
        .iter()
        .map(|(name, value)| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("{value}\n")).unwrap();
            (format!("{name}{FILE_SUFFIX}"), path.to_str().unwrap().to_owned())
        })
        .collect();
    check_full(&Config::load(&twins, None).unwrap(), directory.path());
}

#[test]
fn secrets_are_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let full = full(directory.path().to_str().unwrap());
    let pairs: Vec<_> = full.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let shown = format!("{:?}", load(&pairs).unwrap());
    assert!(shown.contains("rate_limit") && !shown.contains("canary"), "{shown}");
}

#[test]
fn no_mistake_repeats_a_value() {
    let canary = "canary \u{7}\u{e9}";
    let mut all: BTreeMap<String, String> =
        VARIABLES.iter().map(|variable| (variable.name.to_owned(), canary.to_owned())).collect();
    let errors = Config::load(&all, None).unwrap_err();
    assert!(!format!("{errors} {errors:?}").contains("canary"), "{errors}");
    // The control character is wrong everywhere, so each variable is named, and only once.
    let named: Vec<_> = errors.mistakes().iter().map(|mistake| mistake.variable.as_str()).collect();
    let mut known: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    known.sort_unstable();
    assert_eq!(sorted, known);

    let (_directory, path) = file(canary.as_bytes());
    all = VARIABLES.iter().map(|v| (format!("{}{FILE_SUFFIX}", v.name), path.clone())).collect();
    let errors = Config::load(&all, None).unwrap_err();
    assert_eq!(errors.mistakes().len(), VARIABLES.len());
    assert!(!format!("{errors} {errors:?}").contains("canary"), "{errors}");

    let errors =
        load_dotenv(&[], "STRIPE_SECRET_KEY=canary canary\nSMTP_URL=\"canary\n").unwrap_err();
    assert_eq!(errors.mistakes().len(), 2);
    assert!(!format!("{errors} {errors:?}").contains("canary"), "{errors}");
}

#[test]
fn a_twin_names_a_file() {
    for (content, wanted) in [
        (&b""[..], "must name a file that is not empty"),
        (b"\n", "must name a file that is not empty"),
        (b"\r\n", "must name a file that is not empty"),
        (b"sk_test_\xff", "must name a file of UTF-8 text"),
        (
            b"sk_test_a\n\n",
            "must name a file whose content is a Stripe key starting with sk_test_, sk_live_, rk_test_ or rk_live_",
        ),
        (&[b'x'; 65 * 1024], "must name a file of at most 64 KiB"),
    ] {
        let (_directory, path) = file(content);
        let errors = load(&[("STRIPE_SECRET_KEY_FILE", &path)]).unwrap_err();
        assert_eq!(errors.to_string(), format!("STRIPE_SECRET_KEY_FILE: {wanted}"));
    }
    for content in ["sk_test_a", "sk_test_a\n", "sk_test_a\r\n"] {
        let (_directory, path) = file(content.as_bytes());
        let config = load(&[("STRIPE_SECRET_KEY_FILE", &path)]).unwrap();
        assert_eq!(config.stripe_secret_key.unwrap().expose_secret(), "sk_test_a");
    }
    let missing = load(&[("STRIPE_SECRET_KEY_FILE", "/no/such/file")]).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "STRIPE_SECRET_KEY_FILE: must name a file that can be read: entity not found"
    );
    let directory = load(&[("STRIPE_SECRET_KEY_FILE", "/")]).unwrap_err();
    assert_eq!(
        directory.to_string(),
        "STRIPE_SECRET_KEY_FILE: must name a file that can be read: is a directory"
    );
}

#[test]
fn a_variable_and_its_twin_exclude_each_other_within_a_source() {
    let (_directory, path) = file(b"sk_test_file");
    let both = [("STRIPE_SECRET_KEY", "sk_test_a"), ("STRIPE_SECRET_KEY_FILE", path.as_str())];
    let wanted = "STRIPE_SECRET_KEY_FILE: must not be set beside STRIPE_SECRET_KEY; choose one";
    assert_eq!(load(&both).unwrap_err().to_string(), wanted);
    let dotenv = format!("STRIPE_SECRET_KEY=sk_test_a\nSTRIPE_SECRET_KEY_FILE={path}\n");
    assert_eq!(load_dotenv(&[], &dotenv).unwrap_err().to_string(), format!(".env:2: {wanted}"));

    // The environment wins over .env, whichever of the two names each uses.
    let key = |config: Config| config.stripe_secret_key.unwrap().expose_secret().to_owned();
    assert_eq!(
        key(load_dotenv(&both[..1], &format!("STRIPE_SECRET_KEY_FILE={path}")).unwrap()),
        "sk_test_a"
    );
    assert_eq!(
        key(load_dotenv(&both[1..], "STRIPE_SECRET_KEY=sk_test_a").unwrap()),
        "sk_test_file"
    );
}

#[test]
fn empty_means_unset() {
    let empty: Vec<_> = VARIABLES.iter().map(|variable| (variable.name, "")).collect();
    assert!(load(&empty).is_ok());
    let config =
        load_dotenv(&[("TOLLGATE_RATE_LIMIT", "")], "TOLLGATE_RATE_LIMIT=5\nRUST_LOG=\n").unwrap();
    assert_eq!((config.rate_limit, config.log_filter.as_str()), (Some(5), "info"));
}

#[test]
fn misspelt_variables_of_ours_are_refused_and_others_ignored() {
    for (name, wanted) in [
        ("TOLLGATE_LISTN", "is not a known variable; did you mean TOLLGATE_LISTEN?"),
        ("TOLLGATE_API_KEY_FIEL", "is not a known variable; did you mean TOLLGATE_API_KEY_FILE?"),
        ("TOLLGATE_SOMETHING_ELSE_ALTOGETHER", "is not a known variable; see .env.example"),
    ] {
        assert_eq!(load(&[(name, "x")]).unwrap_err().to_string(), format!("{name}: {wanted}"));
        let dotenv = load_dotenv(&[], &format!("# ours\n{name}=x\n")).unwrap_err();
        assert_eq!(dotenv.to_string(), format!(".env:2: {name}: {wanted}"));
    }
    assert!(load(&[("PATH", "/bin"), ("STRIPE_ACCOUNT", "x"), ("TOLLGATE_LISTN", "")]).is_ok());
}

#[test]
fn mistakes_in_dotenv_name_their_line() {
    let text = "\u{feff}# Tollgate\n\nTOLLGATE_RATE_LIMIT=many\n  # a comment\nexport RUST_LOG=a=b=c # why\n\
                MAIL_FROM=a b\nSTRIPE_SECRET_KEY=\"sk_test_\n\nx\"\n\nTOLLGATE_LOG_FORMAT='xml'\n\
                TOLLGATE_RATE_LIMIT=5\nTOLLGATE_PLANS=\"plans\n";
    let errors = load_dotenv(&[], text).unwrap_err();
    let mut lines: Vec<_> = errors
        .to_string()
        .lines()
        .map(|l| l.split(": ").take(2).collect::<Vec<_>>().join(" "))
        .collect();
    lines.sort_by_key(|line| line[5..].split(' ').next().unwrap().parse::<usize>().unwrap());
    assert_eq!(
        lines,
        [
            ".env:3 TOLLGATE_RATE_LIMIT",
            ".env:5 RUST_LOG",
            ".env:6 must be NAME=value; a value with spaces needs quotes, and a quote its end",
            ".env:7 STRIPE_SECRET_KEY",
            ".env:11 TOLLGATE_LOG_FORMAT",
            ".env:12 TOLLGATE_RATE_LIMIT",
            ".env:13 must be NAME=value; a value with spaces needs quotes, and a quote its end",
        ]
    );
    assert!(
        errors
            .to_string()
            .contains(".env:12: TOLLGATE_RATE_LIMIT: must be set once; line 3 sets it too")
    );
    let long = format!("RUST_LOG=info,{}\nTOLLGATE_RATE_LIMIT=x\n", "a=info,".repeat(5000));
    assert!(
        load_dotenv(&[], &long).unwrap_err().to_string().starts_with(".env:2: TOLLGATE_RATE_LIMIT")
    );
}

#[test]
fn the_environment_wins_over_dotenv() {
    let config =
        load_dotenv(&[("TOLLGATE_RATE_LIMIT", "7")], "TOLLGATE_RATE_LIMIT=many\nRUST_LOG=warn")
            .unwrap();
    assert_eq!((config.rate_limit, config.log_filter.as_str()), (Some(7), "warn"));
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let errors = load_dotenv(
        &[("TOLLGATE_LISTEN", "here"), ("TOLLGATE_PLAN", "x"), ("SMTP_URL", "smtp://h")],
        "STRIPE_SECRET_KEY=pk\nTOLLGATE_RATE_LIMIT=0",
    )
    .unwrap_err();
    let named: Vec<_> = errors.mistakes().iter().map(|mistake| mistake.variable.as_str()).collect();
    assert_eq!(
        named,
        [
            "TOLLGATE_PLAN",
            "TOLLGATE_LISTEN",
            "STRIPE_SECRET_KEY",
            "TOLLGATE_RATE_LIMIT",
            "MAIL_FROM"
        ]
    );
}

#[cfg(unix)]
#[test]
fn what_is_not_text_is_refused_only_where_it_is_ours() {
    use std::os::unix::ffi::OsStringExt;
    let bytes = || OsString::from_vec(vec![b's', 0xff]);
    let not_found = || Err(io::Error::from(io::ErrorKind::NotFound));
    let gather = |pairs: Vec<(OsString, OsString)>, dotenv| {
        Config::gather(pairs.into_iter(), Path::new(".env"), dotenv)
    };

    assert!(gather(vec![("OTHER".into(), bytes()), (bytes(), "x".into())], not_found()).is_ok());
    let errors = gather(
        vec![("SMTP_URL_FILE".into(), bytes()), ("RUST_LOG".into(), "warn".into())],
        not_found(),
    )
    .unwrap_err();
    assert_eq!(errors.to_string(), "SMTP_URL_FILE: must be UTF-8 text");
    let errors = gather(vec![], Err(io::Error::from(io::ErrorKind::PermissionDenied))).unwrap_err();
    assert_eq!(errors.to_string(), ".env: must be a file that can be read: permission denied");
    let config = gather(
        vec![("RUST_LOG".into(), "warn".into())],
        Ok("RUST_LOG=info\nTOLLGATE_RATE_LIMIT=3".to_owned()),
    )
    .unwrap();
    assert_eq!((config.log_filter.as_str(), config.rate_limit), ("warn", Some(3)));
}

#[test]
fn the_example_names_every_variable_once_and_holds_no_secret() {
    for variable in VARIABLES {
        let start = format!("#{}=", variable.name);
        let lines: Vec<_> = EXAMPLE.lines().filter(|line| line.starts_with(&start)).collect();
        assert_eq!(lines.len(), 1, "{}", variable.name);
        let sample = &lines[0][start.len()..];
        assert!(!variable.secret || sample.is_empty() || variable.name == "DATABASE_URL");
    }
    assert!(load_dotenv(&[], EXAMPLE).is_ok());
}

#[test]
fn the_examples_samples_are_right() {
    let directory = tempfile::tempdir().unwrap();
    let sample = |line: &str| match line.strip_prefix('#') {
        Some(rest) if VARIABLES.iter().any(|v| rest.starts_with(&format!("{}=", v.name))) => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let samples: String = EXAMPLE.lines().map(|line| sample(line) + "\n").collect();
    let samples = samples.replace("./templates", directory.path().to_str().unwrap());
    let config = load_dotenv(&[], &samples).unwrap();
    assert_eq!(config.public_url, "https://billing.example.com");
    assert_eq!(config.mail_from.as_deref(), Some("Example <billing@example.com>"));
    assert_eq!(config.rate_limit, Some(500));
}

proptest! {
    #[test]
    fn no_value_makes_loading_panic(value in "\\PC{0,40}|[ -~]{0,40}", index in 0..VARIABLES.len()) {
        let name = VARIABLES[index].name;
        for known in ["", "https://", "smtp://", "sqlite:", "whsec_", "sk_test_"] {
            let _ = load(&[(name, &format!("{known}{value}"))]);
        }
    }

    #[test]
    fn no_dotenv_makes_loading_panic(text in "(\\PC|[\\n\"'$#=\\\\\\x00 ]|RUST_LOG=|TOLLGATE_X=){0,60}") {
        if let Err(errors) = load_dotenv(&[], &text) {
            for mistake in errors.mistakes() {
                let (_, line) = mistake.dotenv.as_ref().unwrap();
                prop_assert!((1..=text.lines().count().max(1)).contains(line));
            }
        }
    }
}
