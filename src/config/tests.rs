//! Every rule of the environment, by the mistake it reports.

use proptest::prelude::*;

use super::variables::FILE_SUFFIX;
use super::*;

const EXAMPLE: &str = include_str!("../../.env.example");

fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

fn load(pairs: &[(&str, &str)]) -> Result<Config, ConfigErrors> {
    Config::load(&environment(pairs), None)
}

fn load_dotenv(pairs: &[(&str, &str)], text: &str) -> Result<Config, ConfigErrors> {
    Config::load(&environment(pairs), Some((Path::new(".env"), text)))
}

fn exposed(secrets: &[SecretString]) -> Vec<&str> {
    secrets
        .iter()
        .map(|secret| secret.expose_secret())
        .collect()
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
    assert_eq!(
        (config.log_filter.as_str(), config.log_format),
        ("info", LogFormat::Text)
    );
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
        ("TOLLGATE_RATE_LIMIT", "500"),
        (
            "TOLLGATE_RETURN_ORIGINS",
            "https://app.example.com, http://localhost:3000",
        ),
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
    assert_eq!(
        config.api_key.as_ref().unwrap().expose_secret(),
        "canary-api-key-1"
    );
    assert_eq!(
        config.admin_token.as_ref().unwrap().expose_secret(),
        "canary-admin-tok"
    );
    assert_eq!(
        exposed(&config.signing_keys),
        ["canary-signing-1", "canary-signing-2"]
    );
    assert_eq!(config.livemode(), Some(true));
    assert_eq!(
        exposed(&config.stripe_webhook_secrets),
        ["whsec_canary1", "whsec_canary2"]
    );
    assert_eq!(config.stripe_api_base, "http://127.0.0.1:12111");
    assert!(
        config
            .smtp_url
            .as_ref()
            .unwrap()
            .expose_secret()
            .starts_with("smtps://")
    );
    assert_eq!(
        config.mail_from.as_deref(),
        Some("Example <billing@example.com>")
    );
    assert_eq!(config.templates_dir.as_deref(), Some(templates));
    assert_eq!(config.rate_limit, Some(500));
    assert_eq!(
        config.return_origins,
        ["https://app.example.com", "http://localhost:3000"]
    );
    assert_eq!(config.log_filter, "warn,tollgate=debug");
    assert_eq!(config.log_format, LogFormat::Json);
    assert_eq!(
        config.otel_endpoint.as_deref(),
        Some("http://localhost:4318")
    );
    assert!(config.idle_parts().is_empty());
}

#[test]
fn every_variable_is_read_from_the_environment_from_dotenv_and_from_its_twin() {
    let directory = tempfile::tempdir().unwrap();
    let full = full(directory.path().to_str().unwrap());
    let names: Vec<_> = full.iter().map(|(name, _)| *name).collect();
    let known: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    assert_eq!(names, known, "this test has a value for each");

    let pairs: Vec<_> = full
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    check_full(&load(&pairs).unwrap(), directory.path());

    let dotenv: String = full
        .iter()
        .map(|(name, value)| format!("{name}='{value}'\n"))
        .collect();
    check_full(&load_dotenv(&[], &dotenv).unwrap(), directory.path());

    let twins: BTreeMap<String, String> = full
        .iter()
        .map(|(name, value)| {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("{value}\n")).unwrap();
            (
                format!("{name}{FILE_SUFFIX}"),
                path.to_str().unwrap().to_owned(),
            )
        })
        .collect();
    check_full(&Config::load(&twins, None).unwrap(), directory.path());
}

#[test]
fn secrets_are_never_shown() {
    let directory = tempfile::tempdir().unwrap();
    let full = full(directory.path().to_str().unwrap());
    let pairs: Vec<_> = full
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let shown = format!("{:?}", load(&pairs).unwrap());
    assert!(
        shown.contains("rate_limit") && !shown.contains("canary"),
        "{shown}"
    );
}

#[test]
fn no_mistake_repeats_a_value() {
    let canary = "canary \u{7}\u{e9}";
    let mut all: BTreeMap<String, String> = VARIABLES
        .iter()
        .map(|variable| (variable.name.to_owned(), canary.to_owned()))
        .collect();
    let errors = Config::load(&all, None).unwrap_err();
    assert!(
        !format!("{errors} {errors:?}").contains("canary"),
        "{errors}"
    );
    // The control character is wrong everywhere, so each variable is named once, in its order.
    let named: Vec<_> = errors
        .mistakes()
        .iter()
        .map(|mistake| mistake.variable.as_str())
        .collect();
    let mut known: Vec<_> = VARIABLES.iter().map(|variable| variable.name).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    known.sort_unstable();
    assert_eq!(sorted, known);

    let (_directory, path) = file(canary.as_bytes());
    all = VARIABLES
        .iter()
        .map(|v| (format!("{}{FILE_SUFFIX}", v.name), path.clone()))
        .collect();
    let errors = Config::load(&all, None).unwrap_err();
    assert_eq!(errors.mistakes().len(), VARIABLES.len());
    assert!(
        !format!("{errors} {errors:?}").contains("canary"),
        "{errors}"
    );

    let errors =
        load_dotenv(&[], "STRIPE_SECRET_KEY=canary canary\nSMTP_URL=\"canary\n").unwrap_err();
    assert_eq!(errors.mistakes().len(), 2);
    assert!(
        !format!("{errors} {errors:?}").contains("canary"),
        "{errors}"
    );
}

#[test]
fn wrong_values_are_refused_and_say_what_was_wanted() {
    let key = "0123456789abcdef";
    let three = format!("{key},{key},{key}");
    let blank = format!("{key},,{key}");
    let spaced = "0123456789abcde f";
    for (name, values) in [
        (
            "DATABASE_URL",
            &["mysql://x", "tollgate.db", "postgres", "sqlite://a\nb"][..],
        ),
        (
            "TOLLGATE_LISTEN",
            &[
                "8080",
                ":8080",
                "localhost:8080",
                "127.0.0.1",
                "127.0.0.1:99999",
            ],
        ),
        (
            "TOLLGATE_PUBLIC_URL",
            &[
                "billing.example.com",
                "https://a/",
                "https://a/b/",
                "https://a?b=c",
                "https://a#b",
                "ftp://a",
                "https://",
                "https:a",
                "https://u:p@a",
                "https://a b",
                "https://a\\b",
                "https://a\tb",
            ],
        ),
        ("TOLLGATE_PLANS", &["a\0b"]),
        (
            "TOLLGATE_API_KEY",
            &["short", "0123456789abcde", spaced, "0123456789abcdeé"],
        ),
        ("TOLLGATE_ADMIN_TOKEN", &["short", spaced]),
        (
            "TOLLGATE_SIGNING_KEY",
            &["short", &three, &blank, "0123456789abcdef,"],
        ),
        (
            "STRIPE_SECRET_KEY",
            &[
                "pk_test_abc",
                "sk_test_",
                "sk_test_a b",
                " sk_test_abc",
                "sk_abc",
            ],
        ),
        (
            "STRIPE_WEBHOOK_SECRET",
            &[
                "whsec_",
                "abc",
                "whsec_a,",
                "whsec_a,,whsec_b",
                "whsec_a,b",
                ",",
            ],
        ),
        (
            "STRIPE_API_BASE",
            &[
                "http://api.stripe.com",
                "http://localhost.example.com",
                "http://10.0.0.1",
                "https://api.stripe.com/",
                "api.stripe.com",
                "https://u@api.stripe.com",
            ],
        ),
        (
            "SMTP_URL",
            &[
                "mail.example.com",
                "http://mail",
                "smtp://",
                "smtps://a b",
                "file://x",
                "file:///",
                "SMTP",
            ],
        ),
        (
            "MAIL_FROM",
            &[
                "billing",
                "@example.com",
                "a@",
                "a@b@c",
                "a@b\nBcc: c@d",
                "Example <a@b",
                "a b@c",
                "a@b, c@d",
                "<>",
            ],
        ),
        ("TOLLGATE_TEMPLATES", &["/no/such/directory", "/etc/passwd"]),
        (
            "TOLLGATE_RATE_LIMIT",
            &["0", "-1", "1.5", "1000001", "many", "99999999999"],
        ),
        (
            "TOLLGATE_RETURN_ORIGINS",
            &[
                "app.example.com",
                "https://a/path",
                "https://a/",
                "https://a,",
                "https://a,ftp://b",
                "*",
            ],
        ),
        ("RUST_LOG", &["tollgate=loud", "tollgate=debug=info"]),
        ("TOLLGATE_LOG_FORMAT", &["xml", "JSON"]),
        (
            "OTEL_EXPORTER_OTLP_ENDPOINT",
            &["localhost:4318", "https://u:p@a"],
        ),
    ] {
        let wanted = VARIABLES
            .iter()
            .find(|variable| variable.name == name)
            .unwrap()
            .wanted;
        for value in values {
            let mut pairs = vec![(name, *value)];
            if name == "SMTP_URL" {
                pairs.push(("MAIL_FROM", "billing@example.com"));
            }
            match load(&pairs) {
                Ok(_) => panic!("{name} accepts {value:?}"),
                Err(errors) => assert_eq!(
                    errors.to_string(),
                    format!("{name}: must be {wanted}"),
                    "{value:?}"
                ),
            }
        }
    }
}

#[test]
fn right_values_are_accepted() {
    for (name, values) in [
        (
            "DATABASE_URL",
            &[
                "sqlite::memory:",
                "sqlite:///var/my data/t.db",
                "postgresql://h/d",
                "postgres://h",
            ][..],
        ),
        (
            "TOLLGATE_LISTEN",
            &["0.0.0.0:80", "[::]:8080", "127.0.0.1:0"],
        ),
        (
            "TOLLGATE_PUBLIC_URL",
            &[
                "http://localhost:8080",
                "https://a.example/b/c",
                "https://bücher.example",
            ],
        ),
        (
            "STRIPE_SECRET_KEY",
            &["sk_test_a", "sk_live_a", "rk_test_a", "rk_live_a"],
        ),
        (
            "STRIPE_API_BASE",
            &[
                "http://localhost:1",
                "http://127.0.0.1:1",
                "http://[::1]:1",
                "https://stripe.example",
            ],
        ),
        (
            "MAIL_FROM",
            &[
                "a@b",
                "Example GmbH <a@b.example>",
                "<a@b>",
                "\"Ünal\" <a@b>",
            ],
        ),
        ("RUST_LOG", &["debug", "off", "tollgate=trace,sqlx=warn"]),
        ("TOLLGATE_RATE_LIMIT", &["1", "1000000"]),
        ("TOLLGATE_API_KEY", &["0123456789abcdef"]),
    ] {
        for value in values {
            assert!(load(&[(name, *value)]).is_ok(), "{name}={value}");
        }
    }
    for smtp in [
        "smtp://localhost:25",
        "smtps://u:p@h",
        "file:///var/mail dir",
    ] {
        assert!(
            load(&[("SMTP_URL", smtp), ("MAIL_FROM", "a@b")]).is_ok(),
            "{smtp}"
        );
    }
}

#[test]
fn the_key_tells_the_mode() {
    for (key, live) in [
        ("sk_test_a", false),
        ("rk_test_a", false),
        ("sk_live_a", true),
        ("rk_live_a", true),
    ] {
        assert_eq!(
            load(&[("STRIPE_SECRET_KEY", key)]).unwrap().livemode(),
            Some(live),
            "{key}"
        );
    }
}

#[test]
fn links_lead_to_the_listening_address_unless_told_otherwise() {
    let config = load(&[("TOLLGATE_LISTEN", "[::1]:9000")]).unwrap();
    assert_eq!(config.public_url, "http://[::1]:9000");
}

#[test]
fn variables_that_depend_on_each_other_are_checked_together() {
    let same = "0123456789abcdef";
    let errors = load(&[("TOLLGATE_API_KEY", same), ("TOLLGATE_ADMIN_TOKEN", same)]).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "TOLLGATE_ADMIN_TOKEN: must differ from TOLLGATE_API_KEY"
    );

    let errors = load(&[("SMTP_URL", "smtp://h")]).unwrap_err();
    assert!(
        errors
            .to_string()
            .starts_with("MAIL_FROM: is needed where SMTP_URL is set: "),
        "{errors}"
    );
    let wrong = load(&[("SMTP_URL", "smtp://h"), ("MAIL_FROM", "nobody")]).unwrap_err();
    assert_eq!(
        wrong.mistakes().len(),
        1,
        "wrong is not missing too: {wrong}"
    );
    let (_directory, path) = file(b"a@b\n");
    assert!(load(&[("SMTP_URL", "smtp://h"), ("MAIL_FROM_FILE", &path)]).is_ok());
    assert!(load(&[("MAIL_FROM", "a@b")]).is_ok());
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
        assert_eq!(
            errors.to_string(),
            format!("STRIPE_SECRET_KEY_FILE: {wanted}")
        );
    }
    for content in ["sk_test_a", "sk_test_a\n", "sk_test_a\r\n"] {
        let (_directory, path) = file(content.as_bytes());
        let config = load(&[("STRIPE_SECRET_KEY_FILE", &path)]).unwrap();
        assert_eq!(
            config.stripe_secret_key.unwrap().expose_secret(),
            "sk_test_a"
        );
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
    let both = [
        ("STRIPE_SECRET_KEY", "sk_test_a"),
        ("STRIPE_SECRET_KEY_FILE", path.as_str()),
    ];
    let wanted = "STRIPE_SECRET_KEY_FILE: must not be set beside STRIPE_SECRET_KEY; choose one";
    assert_eq!(load(&both).unwrap_err().to_string(), wanted);
    let dotenv = format!("STRIPE_SECRET_KEY=sk_test_a\nSTRIPE_SECRET_KEY_FILE={path}\n");
    assert_eq!(
        load_dotenv(&[], &dotenv).unwrap_err().to_string(),
        format!(".env:2: {wanted}")
    );

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
    let empty: Vec<_> = VARIABLES
        .iter()
        .map(|variable| (variable.name, ""))
        .collect();
    assert!(load(&empty).is_ok());
    let config = load_dotenv(
        &[("TOLLGATE_RATE_LIMIT", "")],
        "TOLLGATE_RATE_LIMIT=5\nRUST_LOG=\n",
    )
    .unwrap();
    assert_eq!(
        (config.rate_limit, config.log_filter.as_str()),
        (Some(5), "info")
    );
}

#[test]
fn misspelt_variables_of_ours_are_refused_and_others_ignored() {
    for (name, wanted) in [
        (
            "TOLLGATE_LISTN",
            "is not a known variable; did you mean TOLLGATE_LISTEN?",
        ),
        (
            "TOLLGATE_API_KEY_FIEL",
            "is not a known variable; did you mean TOLLGATE_API_KEY_FILE?",
        ),
        (
            "TOLLGATE_SOMETHING_ELSE_ALTOGETHER",
            "is not a known variable; see .env.example",
        ),
    ] {
        assert_eq!(
            load(&[(name, "x")]).unwrap_err().to_string(),
            format!("{name}: {wanted}")
        );
        let dotenv = load_dotenv(&[], &format!("# ours\n{name}=x\n")).unwrap_err();
        assert_eq!(dotenv.to_string(), format!(".env:2: {name}: {wanted}"));
    }
    assert!(
        load(&[
            ("PATH", "/bin"),
            ("STRIPE_ACCOUNT", "x"),
            ("TOLLGATE_LISTN", "")
        ])
        .is_ok()
    );
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
    lines.sort_by_key(|line| {
        line[5..]
            .split(' ')
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap()
    });
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
    let long = format!(
        "RUST_LOG=info,{}\nTOLLGATE_RATE_LIMIT=x\n",
        "a=info,".repeat(5000)
    );
    assert!(
        load_dotenv(&[], &long)
            .unwrap_err()
            .to_string()
            .starts_with(".env:2: TOLLGATE_RATE_LIMIT")
    );
}

#[test]
fn the_environment_wins_over_dotenv() {
    let config = load_dotenv(
        &[("TOLLGATE_RATE_LIMIT", "7")],
        "TOLLGATE_RATE_LIMIT=many\nRUST_LOG=warn",
    )
    .unwrap();
    assert_eq!(
        (config.rate_limit, config.log_filter.as_str()),
        (Some(7), "warn")
    );
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let errors = load_dotenv(
        &[
            ("TOLLGATE_LISTEN", "here"),
            ("TOLLGATE_PLAN", "x"),
            ("SMTP_URL", "smtp://h"),
        ],
        "STRIPE_SECRET_KEY=pk\nTOLLGATE_RATE_LIMIT=0",
    )
    .unwrap_err();
    let named: Vec<_> = errors
        .mistakes()
        .iter()
        .map(|mistake| mistake.variable.as_str())
        .collect();
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

    assert!(
        gather(
            vec![("OTHER".into(), bytes()), (bytes(), "x".into())],
            not_found()
        )
        .is_ok()
    );
    let errors = gather(
        vec![
            ("SMTP_URL_FILE".into(), bytes()),
            ("RUST_LOG".into(), "warn".into()),
        ],
        not_found(),
    )
    .unwrap_err();
    assert_eq!(errors.to_string(), "SMTP_URL_FILE: must be UTF-8 text");
    let errors = gather(
        vec![],
        Err(io::Error::from(io::ErrorKind::PermissionDenied)),
    )
    .unwrap_err();
    assert_eq!(
        errors.to_string(),
        ".env: must be a file that can be read: permission denied"
    );
    let config = gather(
        vec![("RUST_LOG".into(), "warn".into())],
        Ok("RUST_LOG=info\nTOLLGATE_RATE_LIMIT=3".to_owned()),
    )
    .unwrap();
    assert_eq!(
        (config.log_filter.as_str(), config.rate_limit),
        ("warn", Some(3))
    );
}

#[test]
fn the_example_names_every_variable_once_and_holds_no_secret() {
    for variable in VARIABLES {
        let start = format!("#{}=", variable.name);
        let lines: Vec<_> = EXAMPLE
            .lines()
            .filter(|line| line.starts_with(&start))
            .collect();
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
        Some(rest)
            if VARIABLES
                .iter()
                .any(|v| rest.starts_with(&format!("{}=", v.name))) =>
        {
            rest.to_owned()
        }
        _ => line.to_owned(),
    };
    let samples: String = EXAMPLE.lines().map(|line| sample(line) + "\n").collect();
    let samples = samples.replace("./templates", directory.path().to_str().unwrap());
    let config = load_dotenv(&[], &samples).unwrap();
    assert_eq!(config.public_url, "https://billing.example.com");
    assert_eq!(
        config.mail_from.as_deref(),
        Some("Example <billing@example.com>")
    );
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
