//! Keys, addresses, parameters, lists, and the idempotency layer over the wire.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::Method;

use super::*;

#[tokio::test]
async fn only_the_right_key_opens_the_account() {
    let desk = desk().await;
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{KEY}:")));
    let try_with = async |credentials: &str| {
        let headers = [("authorization", credentials)];
        desk.send(Method::GET, "/v1/customers", &[], &headers).await.unwrap()
    };
    assert_eq!(try_with(&basic).await.status, 200);
    let wrong = try_with("Bearer sk_test_other").await;
    assert_eq!(wrong.error(), (401, "", "Invalid API Key provided."));
    assert_eq!(try_with("").await.status, 401);
    assert!(!wrong.text.contains("sk_test_other"));
}

#[tokio::test]
async fn what_stripe_does_not_know_is_refused_by_name() {
    let desk = desk().await;
    let reply = desk.get("/v1/customer", &[]).await;
    assert_eq!(
        (reply.status, &reply.json["error"]["type"]),
        (404, &"invalid_request_error".into())
    );
    let reply = desk.post("/v1/customers", &[("email", "a@example.com"), ("emial", "b")]).await;
    assert_eq!(reply.error(), (400, "parameter_unknown", "Received unknown parameter: emial"));
    assert_eq!(reply.json["error"]["param"], "emial");
    let reply = desk.post("/v1/products", &[]).await;
    assert_eq!(reply.error(), (400, "parameter_missing", "Missing required param: name."));
    let reply = desk.post("/v1/customers", &[("tax_exempt", "none")]).await;
    assert!(reply.error().2.contains("does not simulate"), "{reply:?}");
    let reply = desk.get("/v1/customers/cus_none", &[]).await;
    assert_eq!(reply.error(), (404, "resource_missing", "No such customer: 'cus_none'"));
    assert_eq!(desk.get("/v1/customers", &[]).await.json["data"], serde_json::json!([]));
}

#[tokio::test]
async fn another_version_and_another_encoding_are_refused() {
    let desk = desk().await;
    let old = [("stripe-version", "2024-06-20")];
    let reply = desk.send(Method::GET, "/v1/customers", &[], &old).await.unwrap();
    assert_eq!(reply.status, 400);
    let json = desk.client.post(format!("{}/v1/customers", desk.sim.base_url()));
    let json = json.bearer_auth(KEY).header("content-type", "application/json").body("{}");
    assert_eq!(json.send().await.unwrap().status().as_u16(), 400);
}

#[tokio::test]
async fn a_customer_is_made_changed_found_and_deleted() {
    let desk = desk().await;
    let named = ("metadata[tollgate_customer_id]", "acme");
    let form = [("email", "ada@example.com"), named, CARD[0], CARD[1]];
    let customer = desk.make("/v1/customers", &form).await;
    let path = format!("/v1/customers/{}", id(&customer));
    let changed =
        desk.make(&path, &[("name", "Ada"), ("metadata[tollgate_customer_id]", "")]).await;
    assert_eq!((&changed["name"], &changed["metadata"]), (&"Ada".into(), &serde_json::json!({})));
    assert_eq!(desk.get(&path, &[]).await.json, changed);
    let found = desk.get("/v1/customers", &[("email", "ada@example.com")]).await;
    assert_eq!(found.json["data"].as_array().unwrap().len(), 1);

    let subscription = {
        let price = desk.price("starter_monthly").await;
        let customer = id(&customer);
        desk.make("/v1/subscriptions", &[("customer", &customer), ("items[0][price]", &price)])
            .await
    };
    let from = desk.sim.events().len();
    let stub = serde_json::json!({"id": id(&customer), "object": "customer", "deleted": true});
    assert_eq!(desk.delete(&path).await.json, stub);
    assert_eq!(desk.get(&path, &[]).await.json, stub);
    assert_eq!(desk.told(from), ["customer.subscription.deleted", "customer.deleted"]);
    assert_eq!(desk.subscription(&id(&subscription)).await["status"], "canceled");
    assert_eq!(desk.post(&path, &[("name", "Eve")]).await.status, 404);
    assert_eq!(desk.get("/v1/customers", &[]).await.json["data"], serde_json::json!([]));
}

#[tokio::test]
async fn a_lookup_key_finds_its_price_and_moves_only_when_told() {
    let desk = desk().await;
    let old = desk.price("pro_monthly").await;
    let product = desk.get(&format!("/v1/prices/{old}"), &[]).await.json["product"].clone();
    let form = [
        ("product", product.as_str().unwrap()),
        ("currency", "USD"),
        ("unit_amount", "12900"),
        ("recurring[interval]", "month"),
        ("lookup_key", "pro_monthly"),
    ];
    assert_eq!(desk.post("/v1/prices", &form).await.status, 400);
    let form = [&form[..], &[("transfer_lookup_key", "true")]].concat();
    let new = desk.make("/v1/prices", &form).await;
    assert_eq!(desk.price("pro_monthly").await, id(&new));
    assert!(desk.get(&format!("/v1/prices/{old}"), &[]).await.json["lookup_key"].is_null());
    let both = [("lookup_keys[]", "pro_monthly"), ("lookup_keys[]", "starter_monthly")];
    assert_eq!(desk.get("/v1/prices", &both).await.json["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn currencies_without_hundredths_are_counted_in_them_and_charged_whole() {
    let desk = desk().await;
    let product = id(&desk.make("/v1/products", &[("name", "Pro")]).await);
    for (currency, amount, status) in
        [("isk", "8045", 400), ("isk", "8000", 200), ("ugx", "50", 400), ("usd", "8045", 200)]
    {
        let form = [("product", &*product), ("currency", currency), ("unit_amount", amount)];
        assert_eq!(desk.post("/v1/prices", &form).await.status, status, "{amount} {currency}");
    }
}

#[tokio::test]
async fn lists_hold_ten_unless_asked_and_a_hundred_at_most() {
    let desk = desk().await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.insert(0, desk.customer().await);
    }
    let first = desk.get("/v1/customers", &[]).await.json;
    assert_eq!((&first["has_more"], &first["url"]), (&true.into(), &"/v1/customers".into()));
    let page: Vec<String> = first["data"].as_array().unwrap().iter().map(id).collect();
    assert_eq!(page, ids[..10]);
    let rest = desk.get("/v1/customers", &[("starting_after", &page[9])]).await.json;
    let page: Vec<String> = rest["data"].as_array().unwrap().iter().map(id).collect();
    assert_eq!((page.as_slice(), &rest["has_more"]), (&ids[10..], &false.into()));
    assert_eq!(desk.get("/v1/customers", &[("limit", "101")]).await.status, 400);
    let lost = desk.get("/v1/customers", &[("starting_after", "cus_none")]).await;
    assert_eq!(lost.error(), (400, "resource_missing", "No such customer: 'cus_none'"));
}

#[tokio::test]
async fn ids_are_expanded_where_they_stand() {
    let desk = desk().await;
    let subscription = desk.subscribe("pro_monthly", &[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription));
    let wanted = [("expand[]", "customer"), ("expand[]", "items.data.price.product")];
    let expanded = desk.get(&path, &wanted).await.json;
    assert_eq!(expanded["customer"]["email"], "ada@example.com");
    let product = &expanded["items"]["data"][0]["price"]["product"];
    assert_eq!(product["name"], "pro_monthly");
    let list = desk.get("/v1/subscriptions", &[("expand[]", "data.latest_invoice")]).await.json;
    assert_eq!(list["data"][0]["latest_invoice"]["amount_paid"], 9_900);
    assert_eq!(desk.get(&path, &[("expand[]", "nothing")]).await.status, 400);
    // What is embedded already stays as it is.
    assert_eq!(desk.get(&path, &[("expand[]", "items")]).await.json, subscription);
}

#[tokio::test]
async fn a_key_makes_one_object_however_often_it_is_sent() {
    let desk = desk().await;
    let form = [("email", "ada@example.com"), ("name", "Ada")];
    let first = desk.post_with_key("k1", "/v1/customers", &form).await;
    let again = desk.post_with_key("k1", "/v1/customers", &[form[1], form[0]]).await;
    assert_eq!((again.status, &again.text), (200, &first.text));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.header("original-request"), first.header("request-id"));
    assert_eq!(first.header("idempotent-replayed"), None);
    let other = desk.post_with_key("k1", "/v1/customers", &[("name", "Eve")]).await;
    assert_eq!((other.status, &other.json["error"]["type"]), (400, &"idempotency_error".into()));

    desk.clock.advance(DAY);
    let new = desk.post_with_key("k1", "/v1/customers", &form).await;
    assert_ne!(id(&new.json), id(&first.json));
    assert_eq!(desk.get("/v1/customers", &[]).await.json["data"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_refusal_is_kept_under_its_key_only_once_work_began() {
    let desk = desk().await;
    // Fails validation: the key stays free, and the corrected request goes through.
    assert_eq!(desk.post_with_key("k1", "/v1/products", &[]).await.status, 400);
    assert_eq!(desk.post_with_key("k1", "/v1/products", &[("name", "Pro")]).await.status, 200);
    let wrong = [("authorization", "Bearer wrong"), ("idempotency-key", "k2")];
    let form = [("name", "Pro")];
    let reply = desk.send(Method::POST, "/v1/products", &form, &wrong).await.unwrap();
    assert_eq!(reply.status, 401);
    let reply = desk.post_with_key("k2", "/v1/products", &form).await;
    assert_eq!((reply.status, reply.header("idempotent-replayed")), (200, None));
    // Fails in execution: the refusal is the answer for a day.
    let form = [("id", "prod_x"), ("name", "X")];
    desk.make("/v1/products", &form).await;
    assert_eq!(desk.post_with_key("k3", "/v1/products", &form).await.status, 400);
    let again = desk.post_with_key("k3", "/v1/products", &form).await;
    assert_eq!((again.status, again.header("idempotent-replayed")), (400, Some("true")));
}

#[tokio::test]
async fn the_log_has_every_call() {
    let desk = desk().await;
    desk.post_with_key("k1", "/v1/customers", &[]).await;
    desk.get("/v1/nothing", &[("limit", "1")]).await;
    let log = desk.sim.requests();
    let seen: Vec<_> = log
        .iter()
        .map(|call| (&*call.method, &*call.path, call.idempotency_key.as_deref(), call.status))
        .collect();
    let calls =
        [("POST", "/v1/customers", Some("k1"), Some(200)), ("GET", "/v1/nothing", None, Some(404))];
    assert_eq!(seen, calls);
}

#[tokio::test]
async fn a_stopped_simulator_answers_nobody() {
    let desk = desk().await;
    desk.customer().await;
    desk.sim.stop().await;
    assert!(desk.send(Method::GET, "/v1/customers", &[], &[]).await.is_err());
}
