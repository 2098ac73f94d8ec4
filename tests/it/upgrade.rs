//! Upgrades that take money: which way, each way to its end, and what goes wrong on it. Stripe is
//! the simulator; its customers do by hand what they would do on its pages.

mod checkout;
mod confirm;
mod down;
mod page;
mod portal;

use std::time::Duration;

use reqwest::Response;
use serde_json::{Value, json};
use tollgate::sim::{Card, CheckoutPayment, FaultKind, LoggedRequest};

use crate::harness::postgres::TestDb;
use crate::harness::world::{Reply, World};

const PUBLIC: &str = "https://billing.example.com";
const APP: &str = "https://app.example.com/settings?tab=plan";

/// A world whose product lives at [`APP`].
async fn start(db: &TestDb) -> World {
    let mut world = World::start(db).await;
    world.restart_with(&[("TOLLGATE_RETURN_ORIGINS", "https://app.example.com")]).await;
    world
}

/// The product asks for a way to a plan.
async fn ask(world: &World, customer: &str, plan: &str, return_url: &str) -> Reply {
    let body = json!({"plan_id": plan, "return_url": return_url});
    world.call("POST", &format!("/v1/customers/{customer}/upgrade"), &body).await
}

/// The same, which must succeed; answers the kind and the address.
async fn upgrade(world: &World, customer: &str, plan: &str) -> (String, String) {
    let started = ask(world, customer, plan, APP).await.ok();
    let text = |field: &str| started[field].as_str().expect("text").to_owned();
    (text("kind"), text("url"))
}

/// The id at the end of an address of Stripe's.
fn id_in(url: &str) -> &str {
    url.rsplit('/').next().unwrap()
}

async fn plan_of(world: &World, customer: &str) -> String {
    let answer = world.check(customer).await;
    answer["plan_id"].as_str().expect("a plan").to_owned()
}

/// The subscriptions that Stripe has for a Stripe customer and that are not over.
async fn live(world: &World, stripe_id: &str) -> Vec<Value> {
    let path = format!("/v1/subscriptions?customer={stripe_id}");
    world.stripe("GET", &path, &[]).await["data"].as_array().unwrap().clone()
}

async fn stripe_customers(world: &World) -> Vec<Value> {
    world.stripe("GET", "/v1/customers?limit=100", &[]).await["data"].as_array().unwrap().clone()
}

async fn open_sessions(world: &World) -> Vec<String> {
    let found = world.stripe("GET", "/v1/checkout/sessions?status=open", &[]).await;
    let ids = found["data"].as_array().unwrap().iter();
    ids.map(|session| session["id"].as_str().unwrap().to_owned()).collect()
}

/// Gives a subscription a second, metered item.
async fn add_metered_item(world: &World, subscription: &str) -> String {
    let price = world.metered_price().await;
    let path = format!("/v1/subscriptions/{subscription}");
    world.stripe("POST", &path, &[("items[0][price]", &price)]).await;
    world.settle().await;
    price
}

/// Makes the portal configuration that `tollgate stripe push` would make.
async fn portal(world: &World) -> String {
    let mut form: Vec<(String, String)> = vec![
        ("metadata[tollgate]".into(), "portal".into()),
        ("features[payment_method_update][enabled]".into(), "true".into()),
        ("features[subscription_update][enabled]".into(), "true".into()),
        ("features[subscription_update][default_allowed_updates][]".into(), "price".into()),
        ("features[subscription_update][proration_behavior]".into(), "always_invoice".into()),
    ];
    for (place, key) in ["starter_monthly", "pro_monthly", "team_monthly"].into_iter().enumerate() {
        let price = world.price(key).await;
        let product = world.stripe("GET", &format!("/v1/prices/{price}"), &[]).await;
        let name = format!("features[subscription_update][products][{place}]");
        form.push((format!("{name}[product]"), product["product"].as_str().unwrap().to_owned()));
        form.push((format!("{name}[prices][]"), price));
    }
    let pairs: Vec<_> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let made = world.stripe("POST", "/v1/billing_portal/configurations", &pairs).await;
    made["id"].as_str().unwrap().to_owned()
}

/// Follows a link of ours as a browser would that reaches the daemon under its public address.
async fn open(world: &World, link: &str) -> Response {
    let path = link.strip_prefix(PUBLIC).unwrap_or_else(|| panic!("{link} is not ours"));
    world.http.get(world.url(path)).send().await.expect("the daemon answers")
}

/// The text of a page that must be there.
async fn read(world: &World, link: &str) -> String {
    let response = open(world, link).await;
    assert_eq!(response.status(), 200, "{link}");
    plain(response.text().await.expect("text"))
}

/// Without the escapes that stand for what people read.
fn plain(text: String) -> String {
    text.replace("&#x27;", "'").replace("&#x2F;", "/").replace("&quot;", "\"").replace("&amp;", "&")
}

/// The token that the page's button carries.
fn token_in(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"token\" value=\"").expect("a button");
    rest.split('"').next().unwrap().to_owned()
}

/// Presses the button of a page; answers the status, where it leads, and the page that came.
async fn press(world: &World, token: &str) -> (u16, Option<String>, String) {
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let request = client.build().unwrap().post(world.url("/upgrade"));
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let response = request.body(format!("token={token}")).send().await.unwrap();
    let status = response.status().as_u16();
    let location = response.headers().get("location").map(|to| to.to_str().unwrap().to_owned());
    let page = plain(response.text().await.unwrap());
    let away =
        page.split_once("content=\"0; url=").map(|(_, rest)| rest.split('"').next().unwrap());
    let location = location.map(|query| format!("{PUBLIC}/upgrade{query}"));
    (status, location.or_else(|| away.map(str::to_owned)), page)
}

/// Lets `during` happen between the answer that Stripe makes to the next call of `path` and its
/// arrival at whoever asks by `request`; answers what came of that.
async fn while_stripe_answers<T: Send + 'static>(
    world: &World,
    path: &str,
    request: impl Future<Output = T> + Send + 'static,
    during: impl AsyncFnOnce(),
) -> T {
    world.sim.fail_next(path, 1, FaultKind::SlowBodyMs(1000));
    let asked = asked_at(world, path);
    let asks = tokio::spawn(request);
    while asked_at(world, path) == asked {
        tokio::task::yield_now().await;
    }
    during().await;
    world.clock.advance(Duration::from_secs(1));
    asks.await.expect("it is answered")
}

fn asked_at(world: &World, path: &str) -> usize {
    let answered = |request: &&LoggedRequest| request.path == path && request.status.is_some();
    world.sim.requests().iter().filter(answered).count()
}

/// Opens a page of ours, presses its button and reads the page that this leads to.
async fn go_on(world: &World, link: &str) -> String {
    let page = read(world, link).await;
    let (status, location, page) = press(world, &token_in(&page)).await;
    assert_eq!(status, 303, "{page}");
    read(world, &location.expect("a way on")).await
}

fn pay(world: &World, session_url: &str) -> anyhow::Result<Value> {
    world.sim.complete_checkout(id_in(session_url), CheckoutPayment::Card)
}
