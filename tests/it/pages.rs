//! The pages that mails and the gate lead to. A link is all the authority there is.

use std::time::Duration;

use reqwest::Response;
use serde_json::Value;

use crate::harness::world::World;

const PUBLIC: &str = "https://billing.example.com";

/// Follows a link as a browser would that reaches the daemon under its public address.
async fn open(world: &World, link: &str) -> Response {
    let path = link.strip_prefix(PUBLIC).unwrap_or_else(|| panic!("{link} is not ours"));
    world.http.get(world.url(path)).send().await.expect("the daemon answers")
}

/// Status and text of a page.
async fn read(world: &World, link: &str) -> (u16, String) {
    let response = open(world, link).await;
    let status = response.status().as_u16();
    (status, response.text().await.expect("text").replace("&#x27;", "'").replace("&#39;", "'"))
}

/// The link in the newest mail.
fn link_in_mail(world: &World) -> String {
    let mail = world.mail.mails().pop().expect("a mail");
    let link = mail.text.split_whitespace().find(|word| word.contains("token=")).map(str::to_owned);
    link.unwrap_or_else(|| panic!("no link in {}", mail.text))
}

/// A customer on Starter with 160 runs and its mail, and the link in it.
async fn nudged(world: &World, customer: &str) -> String {
    world.customer(customer).await;
    world.runs(customer, 160).await;
    world.settle().await;
    link_in_mail(world)
}

both_databases! {
    async fn the_mails_link_shows_what_is_used_and_the_way_up(db: TestDb) {
        let world = World::start(&db).await;
        let upgrade = nudged(&world, "acme").await;
        assert!(upgrade.starts_with("https://billing.example.com/upgrade?token="));
        world.runs("acme", 3).await;
        let (status, page) = read(&world, &upgrade).await;
        assert_eq!(status, 200, "{page}");
        let offer = "Pro gives you unlimited runs at $99/month";
        for fact in ["Starter plan", "AI runs", "163 of 200 used", offer, "December 1"] {
            assert!(page.contains(fact), "no {fact:?} in {page}");
        }
    }

    async fn the_usage_link_shows_thousands_and_a_bar_that_fits(db: TestDb) {
        let world = World::start(&db).await;
        world.customer("acme").await;
        let acme = world.link("acme").await;
        world.subscribe(&acme, "pro_monthly").await;
        world.advance(Duration::from_secs(86_400)).await;
        let usage = link_in_mail(&world);
        assert!(usage.starts_with("https://billing.example.com/usage?token="));
        world.runs("acme", 1500).await;
        let (status, page) = read(&world, &usage).await;
        assert_eq!(status, 200, "{page}");
        for fact in ["Pro plan", "1,500 of 2,000 used", "max=\"100\" value=\"75\""] {
            assert!(page.contains(fact), "no {fact:?} in {page}");
        }
        world.runs("acme", 1000).await;
        assert!(read(&world, &usage).await.1.contains("value=\"100\""), "an overrun fills the bar");
    }

    async fn a_link_for_one_purpose_opens_nothing_else(db: TestDb) {
        let world = World::start(&db).await;
        let upgrade = nudged(&world, "acme").await;
        let (status, text) = read(&world, &upgrade.replace("/upgrade?", "/usage?")).await;
        assert_eq!((status, text.as_str()), (403, "this link is not valid"));
    }

    async fn an_altered_link_opens_nothing(db: TestDb) {
        let world = World::start(&db).await;
        let link = nudged(&world, "acme").await;
        let (address, token) = link.split_once("token=").unwrap();
        let (payload, signature) = token.rsplit_once('.').unwrap();
        // Somebody else's name under acme's signature, and every way to leave parts out.
        let globex = {
            use base64::Engine as _;
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let own = engine.decode(payload.strip_prefix("v1.").unwrap()).unwrap();
            let own = String::from_utf8(own).unwrap();
            assert!(own.contains("acme"), "{own}");
            format!("v1.{}", engine.encode(own.replace("acme", "globex")))
        };
        world.customer("globex").await;
        for bad in [
            format!("{globex}.{signature}"),
            format!("{payload}."),
            format!("{payload}.{}", signature.to_uppercase()),
            format!("{payload}.{signature}AAAA"),
            payload.to_owned(),
            token.replace("v1.", "v2."),
            "x".to_owned(),
            String::new(),
            "%00%FF".to_owned(),
        ] {
            let (status, text) = read(&world, &format!("{address}token={bad}")).await;
            assert_eq!((status, text.as_str()), (403, "this link is not valid"), "{bad}");
        }
        let (status, text) = read(&world, &format!("{PUBLIC}/usage")).await;
        assert_eq!((status, text.as_str()), (400, "this link is not valid"));
    }

    async fn a_link_is_good_to_the_end_of_its_period(db: TestDb) {
        let world = World::start(&db).await;
        let link = nudged(&world, "acme").await;
        world.advance_to("2026-11-30T23:59:59Z").await;
        assert_eq!(read(&world, &link).await.0, 200);
        world.advance_to("2026-12-01T00:00:00Z").await;
        let (status, text) = read(&world, &link).await;
        assert_eq!((status, text.as_str()), (403, "this link has expired"));
    }

    async fn pages_are_neither_framed_kept_nor_leaked_by_their_address(db: TestDb) {
        let world = World::start(&db).await;
        let link = nudged(&world, "acme").await;
        for link in [link.clone(), format!("{link}x")] {
            let response = open(&world, &link).await;
            let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
            assert_eq!(header("referrer-policy"), "no-referrer");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("cache-control"), "no-store");
            let policy = header("content-security-policy");
            assert!(policy.contains("default-src 'none'"), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            let kind = if response.status() == 200 { "text/html" } else { "text/plain" };
            assert!(header("content-type").starts_with(kind));
        }
    }

    async fn nobody_sees_another_customers_numbers(db: TestDb) {
        let world = World::start(&db).await;
        let acme = nudged(&world, "acme").await;
        let globex = nudged(&world, "globex").await;
        world.runs("globex", 17).await;
        let (acmes, globexs) = (read(&world, &acme).await.1, read(&world, &globex).await.1);
        assert!(acmes.contains("160 of 200") && !acmes.contains("177"), "{acmes}");
        assert!(globexs.contains("177 of 200") && !globexs.contains("160"), "{globexs}");

        assert_eq!(world.call("DELETE", "/v1/customers/acme", &Value::Null).await.status, 204);
        let (status, text) = read(&world, &acme).await;
        assert_eq!((status, text.as_str()), (403, "this link is not valid"));
        assert_eq!(read(&world, &globex).await.0, 200);
    }

    async fn names_from_the_plans_file_are_text_and_never_markup(db: TestDb) {
        let plans = include_str!("../../plans.example.toml")
            .replace("name = \"AI runs\"", "name = \"<b>AI</b> runs\"");
        let world = World::with_plans(&db, &plans).await;
        let link = nudged(&world, "acme").await;
        let (status, page) = read(&world, &link).await;
        assert_eq!(status, 200);
        assert!(!page.contains("<b>AI</b>"), "{page}");
        assert!(!world.mail.mail().html.contains("<b>AI</b>"));
    }
}
