use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::Made;
use crate::domain::money::Money;
use crate::domain::plan::Interval;
use crate::domain::provision::found::{Found, Unseen};
use crate::domain::provision::{
    Change, Creation, Kind, Offer, PortalTerms, PriceRef, Wanted, Write,
};
use crate::stripe::testing::{FakeStripe, Turn, list};

fn offer(n: usize) -> Offer {
    Offer {
        plan_id: format!("p{n}"),
        name: format!("P{n}"),
        amount: Money::parse("3000", "jpy".parse().unwrap()).unwrap(),
        interval: Interval::Year,
        lookup_key: format!("p{n}"),
    }
}

fn wanted(offers: usize) -> Wanted {
    Wanted {
        livemode: Some(false),
        meters: Vec::new(),
        offers: (0..offers).map(offer).collect(),
        webhook_url: Ok("https://billing.example.com/webhooks/stripe".to_owned()),
        api_version: super::api_version(),
        events: vec!["invoice.paid"],
        thin_events: vec!["v1.thin"],
    }
}

fn ok(body: &Value) -> Turn {
    Turn::json(200, &body.to_string())
}

fn price(id: &str, replaces: Option<&str>) -> Value {
    let metadata = replaces.map_or(json!({}), |old| json!({"tollgate_replaces": old}));
    json!({
        "id": id, "object": "price", "product": "prod_1", "lookup_key": null, "active": true,
        "livemode": false, "unit_amount": 3000, "currency": "jpy", "billing_scheme": "per_unit",
        "recurring": {"interval": "year", "interval_count": 1, "usage_type": "licensed"},
        "metadata": metadata,
    })
}

/// The rest of the account, empty.
fn nothing_else() -> Vec<Turn> {
    let none = || ok(&list(&[], false));
    vec![none(), none(), none(), ok(&json!({"data": [], "next_page_url": null}))]
}

#[tokio::test]
async fn the_account_is_read_list_by_list_to_the_last_page() {
    let meter = |id: &str| {
        json!({
            "id": id, "event_name": "ai_runs", "display_name": "AI runs", "status": "inactive",
            "default_aggregation": {"formula": "sum"}, "event_time_window": null,
            "customer_mapping": {"event_payload_key": "stripe_customer_id", "type": "by_id"},
            "value_settings": {"event_payload_key": "value"},
        })
    };
    let destination = |id: &str, payload: &str| {
        json!({
            "id": id, "type": "webhook_endpoint", "event_payload": payload, "status": "enabled",
            "enabled_events": ["v1.thin"], "webhook_endpoint": {"url": "https://a.example"},
        })
    };
    let next = "https://api.stripe.com/v2/core/event_destinations?page=two";
    let portal = json!({
        "id": "bpc_1", "metadata": {"tollgate": "portal"},
        "features": {"subscription_update": {"enabled": false, "products": null}},
    });
    let theirs = json!({"id": "bpc_2", "metadata": {}, "features": {}});
    let fake = FakeStripe::start([
        ok(&list(&[price("price_new", Some("price_old"))], false)),
        ok(&list(&[], false)),
        ok(&price("price_old", None)),
        ok(&list(&[json!({"id": "prod_1", "name": "P", "active": true, "default_price": {"id": "price_old"}})], false)),
        ok(&list(&[], false)),
        ok(&list(&[meter("mtr_1")], true)),
        ok(&list(&[meter("mtr_2")], false)),
        ok(&list(&[theirs, portal], false)),
        ok(&list(&[json!({"id": "we_1", "url": "https://a.example", "api_version": null,
            "enabled_events": ["*"], "status": "disabled"})], false)),
        ok(&json!({"data": [destination("ed_1", "snapshot")], "next_page_url": next})),
        ok(&json!({"data": [destination("ed_2", "thin")], "next_page_url": null})),
    ])
    .await;
    let found = fake.stripe().find(&wanted(11)).await;
    let ids = |found: &Found| -> Vec<Vec<String>> {
        vec![
            found.prices.as_ref().unwrap().iter().map(|row| row.id.clone()).collect(),
            found.meters.as_ref().unwrap().iter().map(|row| row.id.clone()).collect(),
            found.portals.as_ref().unwrap().iter().map(|row| row.id.clone()).collect(),
            found.destinations.as_ref().unwrap().iter().map(|row| row.id.clone()).collect(),
        ]
    };
    assert_eq!(
        ids(&found),
        [vec!["price_new", "price_old"], vec!["mtr_1", "mtr_2"], vec!["bpc_1"], vec!["ed_2"]]
    );
    let product = &found.products.as_ref().unwrap()[0];
    assert_eq!(product.default_price.as_deref(), Some("price_old"));
    let endpoint = &found.endpoints.as_ref().unwrap()[0];
    assert!(!endpoint.enabled && endpoint.api_version.is_none());
    let lines: Vec<String> = fake.seen().iter().map(|seen| seen.line.clone()).collect();
    assert_eq!(fake.seen()[0].query().len(), 11, "ten lookup keys and the page: {lines:#?}");
    assert!(lines[1].contains("p10"), "{lines:#?}");
    assert!(lines[6].ends_with("limit=100&starting_after=mtr_1 HTTP/1.1"), "{lines:#?}");
    assert_eq!(lines[10], "GET /v2/core/event_destinations?page=two HTTP/1.1");
}

#[tokio::test]
async fn what_the_key_may_not_read_is_told_apart_from_what_is_not_there() {
    let forbidden = r#"{"error":{"type":"invalid_request_error","message":"Having 'rak_price_read' would allow this."}}"#;
    let turns = std::iter::once(Turn::json(403, forbidden)).chain(nothing_else());
    let fake = FakeStripe::start(turns).await;
    let found = fake.stripe().find(&wanted(1)).await;
    let Err(Unseen { kind, reason, forbidden }) = found.prices else { panic!("{found:?}") };
    assert_eq!((kind, forbidden), (Kind::Price, true));
    assert!(reason.contains("rak_price_read"), "{reason}");
    assert!(found.meters.is_ok() && found.destinations.is_ok());
}

#[tokio::test]
async fn a_price_is_made_with_all_its_terms_and_found_by_those_after_it() {
    let fake =
        FakeStripe::start([ok(&json!({"id": "price_1"})), ok(&json!({"id": "bpc_1"}))]).await;
    let (stripe, mut made) = (fake.stripe(), Made::default());
    let (product, replaces) = ("prod_1".to_owned(), Some("price_0".to_owned()));
    let create = Write::Create(Creation::Price { offer: offer(1), product, replaces });
    stripe.write(&create, &mut made).await.unwrap();
    let new = PriceRef::New { lookup_key: "p1".to_owned() };
    let prices = vec![("prod_1".to_owned(), new)];
    stripe
        .write(&Write::Create(Creation::Portal(PortalTerms { prices })), &mut made)
        .await
        .unwrap();

    let form = fake.seen()[0].form();
    let form: Vec<_> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        form,
        [
            ("currency", "jpy"),
            ("lookup_key", "p1"),
            ("metadata[tollgate_plan_id]", "p1"),
            ("metadata[tollgate_replaces]", "price_0"),
            ("product", "prod_1"),
            ("recurring[interval]", "year"),
            ("transfer_lookup_key", "true"),
            ("unit_amount", "3000"),
        ]
    );
    let prices = "features[subscription_update][products][0][prices][0]";
    assert!(fake.seen()[1].form().contains(&(prices.to_owned(), "price_1".to_owned())));
}

#[tokio::test]
async fn an_answer_given_again_is_believed_only_while_its_object_stands_as_asked() {
    let price = |active: bool, lookup_key: &str| {
        let (product, offer) = ("prod_1".to_owned(), offer(1));
        let found = json!({"active": active, "lookup_key": lookup_key});
        (Creation::Price { offer, product, replaces: None }, found)
    };
    let portal = |active: bool, mark: &str| {
        let found = json!({"active": active, "metadata": {"tollgate": mark}});
        (Creation::Portal(PortalTerms { prices: Vec::new() }), found)
    };
    let url = || "https://a.example".to_owned();
    let endpoint = |found: &str| {
        let (api_version, events) = (super::api_version(), Vec::new());
        (Creation::Endpoint { url: url(), api_version, events }, json!({"url": found}))
    };
    let destination = |found: &str| {
        let found = json!({"webhook_endpoint": {"url": found}});
        (Creation::Destination { url: url(), events: Vec::new() }, found)
    };
    for ((creation, found), stands) in [
        (price(true, "p1"), true),
        (price(true, "p2"), false),
        (price(false, "p1"), false),
        (portal(true, "portal"), true),
        (portal(false, "portal"), false),
        (portal(true, ""), false),
        (endpoint("https://a.example"), true),
        (endpoint("https://b.example"), false),
        (destination("https://a.example"), true),
        (destination("https://b.example"), false),
    ] {
        let made = || json!({"id": "ed_1"});
        let again = ok(&made()).with("idempotent-replayed", "true");
        // Where the first is not believed, the next key is asked for and makes a second.
        let last = [ok(&json!({"id": "ed_2"})), ok(&found)];
        let fake = FakeStripe::start([again, ok(&found)].into_iter().chain(last)).await;
        let write = Write::Create(creation);
        let _ = fake.stripe().write(&write, &mut Made::default()).await;
        assert_eq!(fake.seen().len() == 2, stands, "{write:?}: {found}");
    }
}

#[tokio::test]
async fn an_answer_given_again_is_believed_only_if_its_object_is_there() {
    let old =
        || ok(&json!({"id": "we_0", "secret": "whsec_old"})).with("idempotent-replayed", "true");
    let gone = r#"{"error":{"type":"invalid_request_error","message":"No such webhook endpoint"}}"#;
    let kept = Turn::json(500, r#"{"error":{"type":"api_error","message":"sorry"}}"#)
        .with("idempotent-replayed", "true")
        .with("stripe-should-retry", "false");
    let fake = FakeStripe::start([
        old(),
        Turn::json(404, gone),
        kept,
        ok(&json!({"id": "we_1", "secret": "whsec_new"})),
    ])
    .await;
    let (stripe, mut made) = (fake.stripe(), Made::default());
    let create = Write::Create(Creation::Endpoint {
        url: "https://a.example".to_owned(),
        api_version: super::api_version(),
        events: vec!["invoice.paid".to_owned()],
    });
    stripe.write(&create, &mut made).await.unwrap();
    assert_eq!((made.secrets.len(), made.secrets[0].of.as_str()), (1, "we_1"));
    assert_eq!(made.secrets[0].secret.expose_secret(), "whsec_new");
    let keys = fake.seen().into_iter().map(|seen| seen.header("idempotency-key").to_owned());
    let keys: Vec<String> = keys.filter(|key| !key.is_empty()).collect();
    assert!(keys.len() == 3 && keys[0].ends_with("-0") && keys[2].ends_with("-2"), "{keys:?}");
    let stem = |key: &str| key.rsplit_once('-').unwrap().0.to_owned();
    assert!(keys.iter().all(|key| stem(key) == stem(&keys[0])), "of the content alone: {keys:?}");
}

#[tokio::test]
async fn a_refusal_of_today_is_final_and_says_why() {
    let no = r#"{"error":{"type":"invalid_request_error","message":"Not so."}}"#;
    let fake = FakeStripe::start([Turn::json(400, no)]).await;
    let meter = crate::domain::provision::Meter {
        event_name: "ai_runs".to_owned(),
        display_name: "AI runs".to_owned(),
    };
    let create = Write::Create(Creation::Meter(meter));
    let error = fake.stripe().write(&create, &mut Made::default()).await.unwrap_err();
    assert!(error.to_string().contains("Not so."), "{error}");
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_change_is_made_again_as_often_as_it_is_wanted() {
    let turns = std::iter::repeat_with(|| ok(&json!({}))).take(2);
    let fake = FakeStripe::start(turns).await;
    let archive = Write::Change(Change::ArchivePrice { id: "price_1".to_owned() });
    for _ in 0..2 {
        fake.stripe().write(&archive, &mut Made::default()).await.unwrap();
    }
    assert_eq!(fake.seen()[0].line, "POST /v1/prices/price_1 HTTP/1.1");
    let odd = Write::Change(Change::ArchivePrice { id: "../x".to_owned() });
    assert!(fake.stripe().write(&odd, &mut Made::default()).await.is_err());
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn the_account_comes_with_the_time_there() {
    let account = json!({"id": "acct_1", "country": "DE", "charges_enabled": true});
    let answer = ok(&account).with("date", "Fri, 15 Jan 2027 08:00:00 GMT");
    let fake = FakeStripe::start([answer]).await;
    let (account, date) = fake.stripe().account().await.unwrap();
    assert_eq!((account.id.as_str(), account.country.as_deref()), ("acct_1", Some("DE")));
    assert!(account.charges_enabled && account.default_currency.is_none());
    assert_eq!(date.map(|date| date.seconds()), Some(1_800_000_000));
}
