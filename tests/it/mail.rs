//! The three mails: what they say, and what becomes of them on the way.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tollgate::clock::Timestamp;
use tollgate::domain::notice::{NoticeMail, UpgradeFacts, UpgradeOffer, UsageFacts};
use tollgate::domain::plan::Unlock;
use tollgate::mail::{
    Delivery, MailUrl, Mailer, OutgoingMail, RenderedMail, Templates, Timeouts, samples,
};

use crate::harness::smtp_sink::{Fault, SmtpSink};

// What the harness gives the stories.

fn mailer(url: &str) -> Mailer {
    mailer_with(url, Timeouts::default())
}

fn mailer_with(url: &str, timeouts: Timeouts) -> Mailer {
    let url: MailUrl = url.parse().unwrap();
    Mailer::connect(&url, "Acme Billing <billing@acme.example>", timeouts).unwrap()
}

/// For a server that does not answer: long enough for a loopback, short enough to wait for.
fn impatient() -> Timeouts {
    let short = Duration::from_millis(200);
    Timeouts { connect: short, command: short, content: short }
}

fn render(mail: &NoticeMail) -> RenderedMail {
    Templates::load(None).unwrap().render(mail).unwrap()
}

fn outgoing(rendered: RenderedMail) -> OutgoingMail {
    OutgoingMail {
        message_id: "ntc_0001@billing.acme.example".into(),
        to_address: "ada@example.com".into(),
        to_name: Some("Ada Lovelace".into()),
        date: "2026-11-14T09:30:00Z".parse().unwrap(),
        rendered,
    }
}

fn a_mail() -> OutgoingMail {
    outgoing(render(&NoticeMail::UsageNudge(usage(160, 14))))
}

fn usage(used: i64, elapsed_days: i64) -> UsageFacts {
    UsageFacts {
        customer_name: Some("Ada".into()),
        feature_name: "AI runs".into(),
        unit: "run".into(),
        plan_name: "Starter".into(),
        percent: Some(80),
        at_units: None,
        usage: used,
        granted: Some(200),
        elapsed_days,
        period_days: 30,
        projected: used * 30 / elapsed_days,
        resets_at: "2026-12-01T00:00:00Z".parse::<Timestamp>().unwrap(),
        upgrade: Some(UpgradeOffer {
            plan_name: "Pro".into(),
            price: Some("$99/month".into()),
            gives: "unlimited runs".into(),
            url: Some("https://b.example/upgrade?token=abc&p=1".into()),
        }),
        usage_url: Some("https://b.example/usage?token=def".into()),
    }
}

fn upgraded(granted: Option<i64>) -> UpgradeFacts {
    let unlock =
        |title: &str| Unlock { title: title.into(), url: "https://example.com/docs".into() };
    UpgradeFacts {
        customer_name: Some("Ada".into()),
        feature_name: "AI runs".into(),
        unit: "run".into(),
        from_plan_name: Some("Starter".into()),
        plan_name: "Pro".into(),
        granted,
        unlocks: ["First", "Second", "Third", "Fourth"].map(unlock).to_vec(),
        usage_url: Some("https://b.example/usage?token=def".into()),
    }
}

/// The text a reader of the HTML sees, on one line.
fn visible(html: &str) -> String {
    let body = html.split_once("<h1").unwrap().1;
    let text: String =
        body.split('<').filter_map(|piece| piece.split_once('>')).map(|(_, text)| text).collect();
    let text = text.replace("&#39;", "'").replace("&quot;", "\"").replace("&amp;", "&");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn buttons(html: &str) -> usize {
    html.matches(r#"class="button""#).count()
}

fn write(directory: &Path, name: &str, content: &str) {
    let path = directory.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

// What the mails say.

#[test]
fn the_nudge_says_what_got_done_and_the_way_up() {
    let mail = render(&NoticeMail::UsageNudge(usage(160, 14)));
    assert_eq!(mail.subject, "You've used 80% of your AI runs this month.");
    assert_eq!(
        mail.text,
        "Hi Ada,\n\n\
         You've completed 160 AI runs in the first 14 days of this period.\n\n\
         Pro gives you unlimited runs for $99/month.\n\n\
         Upgrade to Pro: https://b.example/upgrade?token=abc&p=1\n\n\
         --\nStarter plan, resets on December 1\n"
    );
    let seen = visible(&mail.html);
    assert!(
        seen.contains("You've completed 160 AI runs in the first 14 days of this period."),
        "{seen}"
    );
    assert!(seen.contains("Pro gives you unlimited runs for $99/month."), "{seen}");
    assert!(mail.html.contains(r#"href="https://b.example/upgrade?token=abc&amp;p=1""#));
    assert!(seen.contains("Upgrade to Pro") && buttons(&mail.html) == 1, "{seen}");
    assert!(!seen.contains("orry") && !seen.contains("apolog"));
}

#[test]
fn a_nudge_beyond_a_soft_limit_says_so_and_its_bar_is_full() {
    let beyond = UsageFacts { percent: Some(250), ..usage(500, 14) };
    let mail = render(&NoticeMail::UsageNudge(beyond));
    assert_eq!(mail.subject, "You've used 250% of your AI runs this month.");
    assert!(mail.html.contains(r#"class="fill" width="100%""#), "{}", mail.html);
}

#[test]
fn the_cap_mail_adds_the_pace_and_the_day_it_resets() {
    let mail = render(&NoticeMail::CapReached(usage(200, 18)));
    assert_eq!(mail.subject, "You've used all of your AI runs this month.");
    for body in [&mail.text, &visible(&mail.html)] {
        let pace = "You've completed 200 AI runs in the first 18 days of this period; \
                    at that pace it's 333 in a full one.";
        assert!(body.contains(pace), "{body}");
        assert!(body.contains("On Starter, your AI runs start again on December 1."), "{body}");
    }
    assert_eq!(buttons(&mail.html), 1);
}

#[test]
fn without_a_plan_above_the_mail_says_when_it_resets_and_links_to_the_usage() {
    let facts = UsageFacts { upgrade: None, ..usage(200, 30) };
    for mail in [NoticeMail::UsageNudge(facts.clone()), NoticeMail::CapReached(facts)] {
        let mail = render(&mail);
        for body in [&mail.text, &visible(&mail.html)] {
            assert!(body.contains("Your AI runs start again on December 1."), "{body}");
            assert!(body.contains("View usage") && !body.contains("pgrade"), "{body}");
            assert!(!body.contains("pace"), "the period is over: {body}");
        }
        assert_eq!(buttons(&mail.html), 1);
    }
}

#[test]
fn without_name_and_links_there_is_still_a_whole_mail() {
    let facts = UsageFacts { customer_name: None, upgrade: None, usage_url: None, ..usage(1, 1) };
    let mail = render(&NoticeMail::UsageNudge(facts));
    assert_eq!(
        mail.text,
        "Hi,\n\nYou've completed 1 run on the first day of this period.\n\n\
         Your AI runs start again on December 1.\n\n--\nStarter plan, resets on December 1\n"
    );
    assert_eq!(buttons(&mail.html), 0);
    assert!(!mail.html.contains("href"));
}

#[test]
fn the_upgrade_mail_says_what_changed_and_shows_three_links() {
    let uncapped = render(&NoticeMail::PlanUpgraded(upgraded(None)));
    assert_eq!(uncapped.subject, "Your AI runs are now uncapped.");
    assert!(
        uncapped
            .text
            .contains("Since you moved from Starter to Pro, your AI runs are no longer capped.")
    );
    assert!(uncapped.text.contains(
        "- First: https://example.com/docs\n- Second: https://example.com/docs\n- Third: "
    ));
    assert!(!uncapped.text.contains("Fourth") && !uncapped.html.contains("Fourth"));
    assert!(visible(&uncapped.html).contains("Also yours now: First Second Third View usage"));

    let number = render(&NoticeMail::PlanUpgraded(upgraded(Some(2000))));
    assert_eq!(number.subject, "You now have 2,000 AI runs a month.");
    assert!(
        visible(&number.html)
            .contains("Since you moved from Starter to Pro, you have 2,000 AI runs a month.")
    );

    let alone = UpgradeFacts {
        from_plan_name: None,
        unlocks: Vec::new(),
        usage_url: None,
        ..upgraded(None)
    };
    let alone = render(&NoticeMail::PlanUpgraded(alone));
    assert_eq!(
        alone.text,
        "Hi Ada,\n\nWith Pro, your AI runs are no longer capped.\n\n--\nPro plan\n"
    );
}

#[test]
fn a_hostile_name_is_text_in_html_and_stays_on_its_line() {
    let name = "<script>alert(\"1\")</script>\r\n\r\nClick https://evil.example 'now'";
    let facts = UsageFacts {
        customer_name: Some(name.into()),
        feature_name: "AI\r\nBcc: eve@x runs".into(),
        ..usage(160, 14)
    };
    let mail = render(&NoticeMail::UsageNudge(facts));
    assert!(!mail.html.contains("<script"), "{}", mail.html);
    assert!(mail.html.contains("&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; Click"));
    assert!(
        mail.text
            .starts_with("Hi <script>alert(\"1\")</script> Click https://evil.example 'now',\n")
    );
    assert_eq!(mail.subject, "You've used 80% of your AI Bcc: eve@x runs this month.");

    let facts = UsageFacts { feature_name: "x".repeat(5000), ..usage(160, 14) };
    assert_eq!(render(&NoticeMail::UsageNudge(facts)).subject.chars().count(), 150);
}

#[test]
fn every_sample_renders_a_whole_page_with_at_most_one_button() {
    let templates = Templates::load(None).unwrap();
    for sample in samples::all() {
        let mail = templates.render(&sample.mail).unwrap();
        assert!(
            mail.html.starts_with("<!doctype html>\n") && mail.html.ends_with("</html>\n"),
            "{}",
            sample.shape
        );
        assert!(buttons(&mail.html) <= 1, "{}", sample.shape);
        for text in [&mail.subject, &mail.text, &mail.html] {
            assert!(
                !text.contains("{{") && !text.contains("{%") && !text.contains("None"),
                "{text}"
            );
        }
    }
}

// The operator's own templates.

#[test]
fn an_operator_replaces_one_file_and_keeps_the_others() {
    let directory = tempfile::tempdir().unwrap();
    write(
        directory.path(),
        "mail/usage_nudge/subject.txt",
        "{{ percent }}% gone,\n{{ customer_name }}!",
    );
    write(directory.path(), "mail/.DS_Store", "x");
    write(directory.path(), "pages/upgrade.html", "not a mail");
    let templates = Templates::load(Some(directory.path())).unwrap();
    let mail = templates.render(&NoticeMail::UsageNudge(usage(160, 14))).unwrap();
    assert_eq!(mail.subject, "80% gone, Ada!");
    assert!(mail.text.contains("Pro gives you unlimited runs"));
}

#[test]
fn a_new_base_and_bodies_that_fit_only_each_other_are_taken_together() {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), "mail/base.html", "<main>{% block all %}{% endblock %}</main>");
    for kind in ["usage_nudge", "cap_reached", "plan_upgraded"] {
        let body = r#"{% extends "mail/base.html" %}{% block all %}{{ plan_name }}{% endblock %}"#;
        write(directory.path(), &format!("mail/{kind}/body.html"), body);
    }
    let templates = Templates::load(Some(directory.path())).unwrap();
    let mail = templates.render(&NoticeMail::PlanUpgraded(upgraded(None))).unwrap();
    assert_eq!(mail.html, "<main>Pro</main>\n");
}

#[test]
fn a_template_that_does_not_work_stops_the_start_and_is_named() {
    for (name, content, problem) in [
        ("mail/usage_nudge/body.html", "{% if %}", "error"),
        ("mail/cap_reached/body.txt", "{{ nosuchthing }}", "nosuchthing"),
        ("mail/cap_reached/subject.txt", "{{ upgrade.plan_name }} awaits", "plan_name"),
        ("mail/plan_upgraded/subject.txt", "  \n ", "renders to nothing"),
        ("mail/base.html", "<p>no blocks, no button</p>", "button"),
        ("mail/plan_upgraded/body.txt", "{{ get_env(name=\"STRIPE_SECRET_KEY\") }}", "get_env"),
        (
            "mail/plan_upgraded/body.txt",
            "{% for i in range(end=9) %}{{ i }}{% endfor %}",
            "not available",
        ),
        ("mail/plan_upgraded/body.txt", "{{ throw(message=customer_name) }}", "not available"),
        ("mail/plan_upgraded/body.txt", "{% include \"/etc/passwd\" %}", "passwd"),
        ("mail/usage-nudge/body.html", "a hyphen", "replaces no template"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), name, content);
        let error =
            Templates::load(Some(directory.path())).err().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(error.file, name, "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
    let nowhere = Templates::load(Some(Path::new("/nonexistent/templates"))).err().unwrap();
    assert!(nowhere.to_string().contains("/nonexistent/templates"), "{nowhere}");
}

#[test]
fn a_template_that_grows_without_end_is_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let nested = "{% for a in feature_name %}".repeat(7) + "many" + &"{% endfor %}".repeat(7);
    write(directory.path(), "mail/usage_nudge/body.txt", &nested);
    let error = Templates::load(Some(directory.path())).err().unwrap();
    assert_eq!(error.file, "mail/usage_nudge/body.txt");
}

// What becomes of a mail.

#[tokio::test]
async fn a_mail_arrives_whole() {
    let sink = SmtpSink::start().await;
    assert_eq!(mailer(&sink.url()).send(&a_mail()).await, Delivery::Accepted);

    let mail = sink.mail();
    assert_eq!(mail.envelope_from, "billing@acme.example");
    assert_eq!(mail.envelope_to, ["ada@example.com"]);
    assert_eq!((mail.from.as_str(), mail.to.as_str()), ("billing@acme.example", "ada@example.com"));
    assert_eq!(mail.to_name.as_deref(), Some("Ada Lovelace"));
    assert_eq!(mail.subject, "You've used 80% of your AI runs this month.");
    assert_eq!(mail.message_id, "ntc_0001@billing.acme.example");
    assert_eq!(mail.text, a_mail().rendered.text);
    assert_eq!(mail.html, a_mail().rendered.html);
    for header in [
        "\r\nDate: Sat, 14 Nov 2026 09:30:00 +0000\r\n",
        "\r\nAuto-Submitted: auto-generated\r\n",
        "\r\nMIME-Version: 1.0\r\n",
        "\r\nContent-Type: multipart/alternative;",
    ] {
        assert!(mail.raw.contains(header), "{header} in {}", mail.raw);
    }
}

#[tokio::test]
async fn the_same_mail_is_the_same_bytes() {
    let sink = SmtpSink::start().await;
    let mailer = Arc::new(mailer(&sink.url()));
    // Each in a task of its own, side by side, as a job may send them.
    let send = || {
        tokio::spawn({
            let mailer = mailer.clone();
            async move { mailer.send(&a_mail()).await }
        })
    };
    let (one, other) = tokio::join!(send(), send());
    assert_eq!((one.unwrap(), other.unwrap()), (Delivery::Accepted, Delivery::Accepted));
    let mails = sink.mails();
    assert_eq!(mails[0].raw, mails[1].raw);
    assert_eq!(sink.connections(), 2);
}

#[tokio::test]
async fn text_outside_ascii_and_lines_of_dots_survive() {
    let sink = SmtpSink::start().await;
    let mut mail = a_mail();
    mail.to_name = Some("Zoë 👩‍🚀 Müller, \"Chief\"".into());
    mail.rendered.subject = "Zoë, du hast 80 % verbraucht".into();
    mail.rendered.text = ".\n..two dots\nGrüße\n".into();
    mail.rendered.html = format!("<p>{}</p>\n", "a very long line ".repeat(200));
    assert_eq!(mailer(&sink.url()).send(&mail).await, Delivery::Accepted);
    let taken = sink.mail();
    assert_eq!(taken.to_name, mail.to_name);
    assert_eq!(taken.subject, mail.rendered.subject);
    assert_eq!(taken.text, mail.rendered.text);
    assert_eq!(taken.html, mail.rendered.html);
}

#[tokio::test]
async fn a_name_with_line_breaks_adds_no_header_and_stops_nothing() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    for name in [
        "Ada\r\nBcc: eve@evil.example",
        "Ada\nX: y",
        "Ada\r",
        "\u{0}\u{1b}[31m",
        "\"><script>",
        "(a) <b@c>",
        "",
    ] {
        let mut mail = a_mail();
        mail.to_name = Some(name.into());
        mail.rendered.subject = format!("Hello {name}\r\nBcc: eve@evil.example");
        assert_eq!(mailer.send(&mail).await, Delivery::Accepted, "{name:?}");
    }
    for mail in sink.mails() {
        let headers = mail.raw.split("\r\n\r\n").next().unwrap();
        assert!(!headers.contains("\r\nBcc:") && !headers.contains("\r\nX:"), "{headers}");
        assert!(!mail.subject.chars().any(char::is_control), "{:?}", mail.subject);
        assert_eq!(mail.to, "ada@example.com");
        assert_eq!(mail.envelope_to, ["ada@example.com"]);
    }
    assert_eq!(sink.mails().len(), 7);
}

#[tokio::test]
async fn what_is_no_address_or_no_message_id_is_refused_before_the_server_hears_of_it() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    let long = format!("{}@example.com", "a".repeat(250));
    for address in [
        "",
        "ada",
        "ada@example.com\r\nRCPT TO:<eve@evil.example>",
        "a@b@c",
        "<ada@example.com>",
        long.as_str(),
    ] {
        let mail = OutgoingMail { to_address: address.into(), ..a_mail() };
        let Delivery::Refused { reason } = mailer.send(&mail).await else { panic!("{address:?}") };
        assert!(!reason.contains("ada"), "{reason}");
    }
    for message_id in ["", "ntc_1", "a b@c", "a@b>\r\nBcc: eve@evil.example", "@c"] {
        let mail = OutgoingMail { message_id: message_id.into(), ..a_mail() };
        assert!(matches!(mailer.send(&mail).await, Delivery::Refused { .. }), "{message_id:?}");
    }
    assert_eq!(sink.connections(), 0);
}

#[tokio::test]
async fn a_server_that_is_away_or_busy_gets_the_mail_later() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    for fault in [
        Fault::Greeting("421 4.3.2 busy"),
        Fault::Greeting("554 5.3.2 no service"),
        Fault::Rcpt("450 4.2.1 <ada@example.com>: try again"),
        Fault::Data("451 4.3.0 later"),
        Fault::Content("452 4.3.1 disk full"),
        Fault::DropAtRcpt,
    ] {
        sink.set_fault(fault);
        let delivery = mailer.send(&a_mail()).await;
        let Delivery::TryLater { reason } = &delivery else { panic!("{fault:?}: {delivery:?}") };
        assert!(!reason.contains("ada@"), "{reason}");
    }
    assert_eq!(sink.mails().len(), 0);
    sink.set_fault(None);
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted, "a fault leaves nothing behind");

    let nobody = { SmtpSink::start().await.url() };
    tokio::task::yield_now().await;
    assert!(matches!(self::mailer(&nobody).send(&a_mail()).await, Delivery::TryLater { .. }));
}

#[tokio::test]
async fn a_server_that_says_never_is_believed() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    for fault in [
        Fault::Rcpt("550 5.1.1 <ada@example.com>: no such user"),
        Fault::Data("554 5.7.1 no"),
        Fault::Content("554 5.6.0 spam"),
    ] {
        sink.set_fault(fault);
        let delivery = mailer.send(&a_mail()).await;
        let Delivery::Refused { reason } = &delivery else { panic!("{fault:?}: {delivery:?}") };
        assert!(reason.contains("55") && !reason.contains("ada@"), "{reason}");
    }
    assert_eq!(sink.mails().len(), 0);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_mail_unknown_and_it_was_indeed_taken() {
    let sink = SmtpSink::start().await;
    let mailer = mailer_with(&sink.url(), impatient());
    for (taken, fault) in
        [Fault::DropAfterContent, Fault::SilentAfterContent].into_iter().enumerate()
    {
        sink.set_fault(fault);
        assert!(matches!(mailer.send(&a_mail()).await, Delivery::Unknown { .. }), "{fault:?}");
        assert_eq!(sink.mails().len(), taken + 1);
    }
    sink.set_fault(Fault::Content("354 what?"));
    assert!(matches!(mailer.send(&a_mail()).await, Delivery::Unknown { .. }), "a yes that is none");
}

#[tokio::test]
async fn a_server_that_falls_silent_before_the_content_gets_the_mail_later() {
    let sink = SmtpSink::start().await;
    let mailer = mailer_with(&sink.url(), impatient());
    sink.set_fault(Fault::SilentAtRcpt);
    assert!(matches!(mailer.send(&a_mail()).await, Delivery::TryLater { .. }));
    sink.set_fault(None);
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    assert_eq!(sink.connections(), 2, "the half-spoken connection was not used again");
}

#[tokio::test]
async fn a_connection_is_used_again_unless_the_server_closed_it() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    for _ in 0..3 {
        assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    }
    assert_eq!(sink.connections(), 1);
    sink.close_idle();
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    assert_eq!((sink.connections(), sink.mails().len()), (2, 4));
}

#[tokio::test]
async fn a_send_that_was_given_up_does_not_spoil_the_next() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    sink.set_fault(Fault::SilentAfterContent);
    let given_up = tokio::time::timeout(Duration::from_millis(200), mailer.send(&a_mail())).await;
    assert!(given_up.is_err());
    sink.set_fault(None);
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    assert_eq!(sink.connections(), 2);
}

#[tokio::test]
async fn user_and_password_reach_the_server_and_a_wrong_one_is_no_verdict_on_the_mail() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&format!("smtp://ada%40acme.example:p%40ss@127.0.0.1:{}", sink.port()));
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    assert_eq!(sink.logins(), [("ada@acme.example".to_owned(), "p@ss".to_owned())]);

    sink.close_idle();
    sink.set_fault(Fault::Auth("535 5.7.8 wrong password"));
    let Delivery::TryLater { reason } = mailer.send(&a_mail()).await else { panic!("final") };
    assert!(reason.contains("535") && !reason.contains("p@ss"), "{reason}");
}

#[tokio::test]
async fn where_encryption_is_required_nothing_is_said_without_it() {
    let sink = SmtpSink::start().await;
    for url in [
        format!("smtp://127.0.0.1:{}?tls=required", sink.port()),
        format!("smtps://127.0.0.1:{}", sink.port()),
    ] {
        let mailer = mailer_with(&url, impatient());
        assert!(matches!(mailer.send(&a_mail()).await, Delivery::TryLater { .. }), "{url}");
        assert!(mailer.check().await.is_err(), "{url}");
    }
    assert_eq!((sink.mails().len(), sink.logins().len()), (0, 0));
}

#[tokio::test]
async fn an_address_outside_ascii_needs_a_server_that_knows_how() {
    let sink = SmtpSink::start().await;
    let mail = OutgoingMail { to_address: "zoë@example.com".into(), ..a_mail() };
    let Delivery::Refused { reason } = mailer(&sink.url()).send(&mail).await else {
        panic!("taken")
    };
    assert_eq!(reason, "the mail server takes only ASCII addresses");
}

#[tokio::test]
async fn a_check_asks_the_server_and_sends_nothing() {
    let sink = SmtpSink::start().await;
    let mailer = mailer(&sink.url());
    assert_eq!(mailer.check().await, Ok(()));
    assert_eq!(sink.mails().len(), 0);
    sink.set_fault(Fault::Greeting("421 4.3.2 busy"));
    let problem = mailer.check().await.unwrap_err();
    assert!(problem.contains("421"), "{problem}");
}

#[tokio::test]
async fn mails_can_go_into_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let outbox = directory.path().join("a/b");
    let mailer = mailer(&format!("file://{}", outbox.display()));
    assert_eq!(mailer.check().await, Ok(()));
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    assert_eq!(mailer.send(&a_mail()).await, Delivery::Accepted);
    let names: Vec<_> =
        fs::read_dir(&outbox).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        names,
        ["ntc_0001@billing.acme.example.eml"],
        "one file per message id, nothing unfinished"
    );
    let raw = fs::read_to_string(outbox.join(&names[0])).unwrap();
    assert!(raw.contains("\r\nSubject: You've used 80% of your AI runs this month.\r\n"), "{raw}");

    write(directory.path(), "file", "in the way");
    let blocked = self::mailer(&format!("file://{}", directory.path().join("file").display()));
    assert!(matches!(blocked.send(&a_mail()).await, Delivery::TryLater { .. }));
    assert!(blocked.check().await.is_err());
}

#[test]
fn a_sender_is_a_mailbox() {
    let url: MailUrl = "file:///tmp".parse().unwrap();
    for bad in [
        "",
        "Acme",
        "Acme <billing>",
        "a@b.example, c@d.example",
        "Acme <a@b.example>\r\nBcc: c@d.example",
    ] {
        assert!(Mailer::connect(&url, bad, Timeouts::default()).is_err(), "{bad:?}");
    }
    assert!(Mailer::connect(&url, "billing@acme.example", Timeouts::default()).is_ok());
}
