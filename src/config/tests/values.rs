//! What each value must look like, by the mistake it reports.

use super::*;

/// What each variable refuses.
const WRONG: &[(&str, &[&str])] = &[
    ("DATABASE_URL", &["mysql://x", "tollgate.db", "postgres", "sqlite://a\nb"]),
    ("TOLLGATE_LISTEN", &["8080", ":8080", "localhost:8080", "127.0.0.1", "127.0.0.1:99999"]),
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
    ("TOLLGATE_API_KEY", &["short", "0123456789abcde", "0123456789abcde f", "0123456789abcdeé"]),
    ("TOLLGATE_ADMIN_TOKEN", &["short", "0123456789abcde f"]),
    (
        "TOLLGATE_SIGNING_KEY",
        &[
            "short",
            "0123456789abcdef,0123456789abcdef,0123456789abcdef",
            "0123456789abcdef,,0123456789abcdef",
            "0123456789abcdef,",
        ],
    ),
    ("STRIPE_SECRET_KEY", &["pk_test_abc", "sk_test_", "sk_test_a b", " sk_test_abc", "sk_abc"]),
    ("STRIPE_WEBHOOK_SECRET", &["whsec_", "abc", "whsec_a,", "whsec_a,,whsec_b", "whsec_a,b", ","]),
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
    ("TOLLGATE_RATE_LIMIT", &["0", "-1", "1.5", "1000001", "many", "99999999999"]),
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
    ("RUST_LOG", &["tollgate=loud", "tollgate=debug=info", " 0𐭘="]),
    ("TOLLGATE_LOG_FORMAT", &["xml", "JSON"]),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", &["localhost:4318", "https://u:p@a"]),
];

#[test]
fn wrong_values_are_refused_and_say_what_was_wanted() {
    for (name, values) in WRONG {
        let wanted = VARIABLES.iter().find(|variable| variable.name == *name).unwrap().wanted;
        for value in *values {
            let mut pairs = vec![(*name, *value)];
            if *name == "SMTP_URL" {
                pairs.push(("MAIL_FROM", "billing@example.com"));
            }
            match load(&pairs) {
                Ok(_) => panic!("{name} accepts {value:?}"),
                Err(errors) => {
                    assert_eq!(errors.to_string(), format!("{name}: must be {wanted}"), "{value:?}")
                }
            }
        }
    }
}

#[test]
fn right_values_are_accepted() {
    for (name, values) in [
        (
            "DATABASE_URL",
            &["sqlite::memory:", "sqlite:///var/my data/t.db", "postgresql://h/d", "postgres://h"]
                [..],
        ),
        ("TOLLGATE_LISTEN", &["0.0.0.0:80", "[::]:8080", "127.0.0.1:0"]),
        (
            "TOLLGATE_PUBLIC_URL",
            &["http://localhost:8080", "https://a.example/b/c", "https://bücher.example"],
        ),
        ("STRIPE_SECRET_KEY", &["sk_test_a", "sk_live_a", "rk_test_a", "rk_live_a"]),
        (
            "STRIPE_API_BASE",
            &[
                "http://localhost:1",
                "http://127.0.0.1:1",
                "http://[::1]:1",
                "https://stripe.example",
            ],
        ),
        ("MAIL_FROM", &["a@b", "Example GmbH <a@b.example>", "<a@b>", "\"Ünal\" <a@b>"]),
        ("RUST_LOG", &["debug", "off", "tollgate=trace,sqlx=warn"]),
        ("TOLLGATE_RATE_LIMIT", &["1", "1000000"]),
        ("TOLLGATE_API_KEY", &["0123456789abcdef"]),
    ] {
        for value in values {
            assert!(load(&[(name, *value)]).is_ok(), "{name}={value}");
        }
    }
    for smtp in ["smtp://localhost:25", "smtps://u:p@h", "file:///var/mail dir"] {
        assert!(load(&[("SMTP_URL", smtp), ("MAIL_FROM", "a@b")]).is_ok(), "{smtp}");
    }
}

#[test]
fn the_key_tells_the_mode() {
    for (key, live) in
        [("sk_test_a", false), ("rk_test_a", false), ("sk_live_a", true), ("rk_live_a", true)]
    {
        assert_eq!(load(&[("STRIPE_SECRET_KEY", key)]).unwrap().livemode(), Some(live), "{key}");
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
    assert_eq!(errors.to_string(), "TOLLGATE_ADMIN_TOKEN: must differ from TOLLGATE_API_KEY");

    let errors = load(&[("SMTP_URL", "smtp://h")]).unwrap_err();
    assert!(
        errors.to_string().starts_with("MAIL_FROM: is needed where SMTP_URL is set: "),
        "{errors}"
    );
    let wrong = load(&[("SMTP_URL", "smtp://h"), ("MAIL_FROM", "nobody")]).unwrap_err();
    assert_eq!(wrong.mistakes().len(), 1, "wrong is not missing too: {wrong}");
    let (_directory, path) = file(b"a@b\n");
    assert!(load(&[("SMTP_URL", "smtp://h"), ("MAIL_FROM_FILE", &path)]).is_ok());
    assert!(load(&[("MAIL_FROM", "a@b")]).is_ok());
}
