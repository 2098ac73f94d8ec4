//! Writing what is missing or differs.
//!
//! What makes something carries an idempotency key that follows from its content alone, so that a
//! run which was cut short, or two at the same time, make it once. But Stripe keeps the answer
//! under a key for a day and gives it again whatever has happened since: an old refusal, an old
//! 500, or the description of something that was deleted, archived or given to somebody else's use.
//! An answer given again is therefore believed only if what it tells of still stands as asked; else
//! the next key is taken.

use std::collections::BTreeMap;
use std::fmt;

use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{MARK, PLAN_MARK, PORTAL_MARK, REPLACES_MARK, Stripe, WEBHOOKS_MARK, read};
use crate::domain::provision::{Change, Creation, Offer, PortalTerms, PriceRef, Write};
use crate::stripe::transport::direct::{Answered, Body, Failed};
use crate::stripe::{StripeError, StripeErrorKind};

/// How many spent keys are passed over: more than anybody provisions in a day.
const KEYS: u32 = 20;

/// How what is ours is called in the Dashboard.
const OUR_NAME: &str = "Tollgate";

type Result<T> = std::result::Result<T, StripeError>;

/// What the writes of one run have made so far, for those that come after.
#[derive(Debug, Default)]
pub struct Made {
    prices: BTreeMap<String, String>,
    /// The signing secrets, which Stripe tells this once.
    pub secrets: Vec<Secret>,
}

/// What the webhooks of an endpoint are signed with.
#[derive(Debug)]
pub struct Secret {
    /// The endpoint or destination.
    pub of: String,
    pub secret: SecretString,
}

/// A form in the making.
#[derive(Default)]
struct Form(Vec<(String, String)>);

impl Form {
    fn with(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.0.push((name.to_owned(), value.to_string()));
        self
    }

    fn list(mut self, name: &str, values: &[String]) -> Self {
        for (place, value) in values.iter().enumerate() {
            self = self.with(&format!("{name}[{place}]"), value);
        }
        self
    }

    fn marked(self, mark: &str, value: &str) -> Self {
        self.with(&format!("metadata[{mark}]"), value)
    }

    fn body(self) -> Body {
        Body::Form(self.0)
    }
}

impl Stripe {
    /// Does one write, and notes in `made` what later ones need.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses. Whether it took effect may then be unknown: what is
    /// there has to be read again.
    pub async fn write(&self, write: &Write, made: &mut Made) -> Result<()> {
        match write {
            Write::Create(creation) => self.create(creation, made).await,
            Write::Change(change) => {
                let (path, body) = change_of(change, made)?;
                // The same change may be wanted twice in a day, so its key is not of its content.
                let key = self.transport.fresh_key();
                self.transport.post(&path, &body, &key).await.map_err(|failed| failed.error)?;
                Ok(())
            }
        }
    }

    async fn create(&self, creation: &Creation, made: &mut Made) -> Result<()> {
        let (path, body) = creation_of(creation, made)?;
        let answer = self.create_once(creation, path, &body).await?.body;
        let id = read::required(&answer, "id")?;
        match creation {
            Creation::Price { offer, .. } => {
                made.prices.insert(offer.lookup_key.clone(), id);
            }
            Creation::Endpoint { .. } => made.keep_secret(id, &answer["secret"]),
            Creation::Destination { .. } => {
                made.keep_secret(id, &answer["webhook_endpoint"]["signing_secret"]);
            }
            _ => {}
        }
        Ok(())
    }

    /// Makes what `body` describes unless an earlier call made it and it still stands.
    async fn create_once(&self, creation: &Creation, path: &str, body: &Body) -> Result<Answered> {
        let mut refused = None;
        for nth in 0..KEYS {
            match self.transport.post(path, body, &content_key(path, body, nth)).await {
                // Version 2 does not document how it says that it answers again.
                Ok(answered) if !answered.replayed && !path.starts_with("/v2/") => {
                    return Ok(answered);
                }
                Ok(answered) => {
                    if self.still_stands(creation, path, &answered.body).await? {
                        return Ok(answered);
                    }
                }
                Err(Failed { error, replayed: true }) => refused = Some(error),
                Err(Failed { error, .. }) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| StripeError::unreachable("what was made is not there")))
    }

    async fn still_stands(&self, creation: &Creation, path: &str, made: &Value) -> Result<bool> {
        let id = read::required(made, "id")?;
        let path = format!("{path}/{}", read::segment(&id)?);
        let query: &[_] = match creation {
            // Left out unless asked for.
            Creation::Destination { .. } => &[("include[0]", "webhook_endpoint.url")],
            _ => &[],
        };
        match self.transport.get(&path, query).await {
            Ok(found) => Ok(is_as_asked(creation, &found.body)),
            // Version 2 has another word for it than version 1.
            Err(StripeError { kind: StripeErrorKind::Refused { status: 404, .. }, .. }) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// Whether what was made is still what was asked for, in all that somebody else can have changed and
/// by which we find it: otherwise the next run would miss it again, and be given it again.
fn is_as_asked(creation: &Creation, found: &Value) -> bool {
    let as_asked = match creation {
        Creation::Meter(_) | Creation::Product { .. } => true,
        Creation::Price { offer, .. } => {
            found["active"] == true && found["lookup_key"] == *offer.lookup_key
        }
        Creation::Portal(_) => found["active"] == true && found["metadata"][MARK] == PORTAL_MARK,
        Creation::Endpoint { url, .. } => found["url"] == **url,
        Creation::Destination { url, .. } => found["webhook_endpoint"]["url"] == **url,
    };
    as_asked && found["deleted"] != true
}

impl Made {
    fn keep_secret(&mut self, of: String, secret: &Value) {
        if let Some(secret) = secret.as_str() {
            self.secrets.push(Secret { of, secret: secret.into() });
        }
    }

    /// The id of a price that is there or was just made.
    fn price(&self, price: &PriceRef) -> Result<String> {
        match price {
            PriceRef::Id(id) => Ok(id.clone()),
            PriceRef::New { lookup_key } => self
                .prices
                .get(lookup_key)
                .cloned()
                .ok_or_else(|| StripeError::unsendable("price that was not made")),
        }
    }
}

/// The same for the same content, at most 255 characters.
fn content_key(path: &str, body: &Body, nth: u32) -> String {
    let mut digest = Sha256::new();
    digest.update(path.as_bytes());
    digest.update([0]);
    digest.update(body.text().as_bytes());
    format!("tollgate-push-{}-{nth}", hex::encode(&digest.finalize()[..16]))
}

fn creation_of(creation: &Creation, made: &Made) -> Result<(&'static str, Body)> {
    let form = Form::default();
    Ok(match creation {
        Creation::Meter(meter) => {
            let form = form
                .with("display_name", &meter.display_name)
                .with("event_name", &meter.event_name)
                .with("default_aggregation[formula]", "sum")
                .with("customer_mapping[type]", "by_id")
                .with("customer_mapping[event_payload_key]", "stripe_customer_id")
                .with("value_settings[event_payload_key]", "value");
            ("/v1/billing/meters", form.body())
        }
        Creation::Product { id, name, plan_id } => {
            let form = form.with("id", id).with("name", name).marked(PLAN_MARK, plan_id);
            ("/v1/products", form.body())
        }
        Creation::Price { offer, product, replaces } => {
            ("/v1/prices", price_form(offer, product, replaces.as_deref()).body())
        }
        Creation::Portal(terms) => {
            let form = portal_form(terms, made)?.with("name", OUR_NAME);
            ("/v1/billing_portal/configurations", form.marked(MARK, PORTAL_MARK).body())
        }
        Creation::Endpoint { url, api_version, events } => {
            let form = form
                .with("url", url)
                .with("api_version", api_version)
                .with("description", OUR_NAME)
                .list("enabled_events", events)
                .marked(MARK, WEBHOOKS_MARK);
            ("/v1/webhook_endpoints", form.body())
        }
        Creation::Destination { url, events } => {
            let body = json!({
                "name": OUR_NAME,
                "type": "webhook_endpoint",
                "event_payload": "thin",
                "enabled_events": events,
                "webhook_endpoint": { "url": url },
                "metadata": { MARK: WEBHOOKS_MARK },
                // Left out unless asked for.
                "include": ["webhook_endpoint.signing_secret"],
            });
            ("/v2/core/event_destinations", Body::Json(body))
        }
    })
}

fn price_form(offer: &Offer, product: &str, replaces: Option<&str>) -> Form {
    let form = Form::default()
        .with("product", product)
        .with("unit_amount", offer.amount.minor)
        .with("currency", offer.amount.currency.code())
        .with("recurring[interval]", offer.interval.label())
        .with("lookup_key", &offer.lookup_key)
        .marked(PLAN_MARK, &offer.plan_id);
    match replaces {
        Some(old) => form.with("transfer_lookup_key", true).marked(REPLACES_MARK, old),
        None => form,
    }
}

fn portal_form(terms: &PortalTerms, made: &Made) -> Result<Form> {
    let mut form = Form::default();
    for on in ["payment_method_update", "invoice_history", "subscription_cancel"] {
        form = form.with(&format!("features[{on}][enabled]"), true);
    }
    form = form.with("features[subscription_cancel][mode]", "at_period_end");
    let update = "features[subscription_update]";
    form = form.with(&format!("{update}[enabled]"), !terms.prices.is_empty());
    if terms.prices.is_empty() {
        return Ok(form);
    }
    form = form
        .with(&format!("{update}[default_allowed_updates][0]"), "price")
        // An upgrade is paid when it is made; a downgrade waits for what has been paid for.
        .with(&format!("{update}[proration_behavior]"), "always_invoice");
    let conditions = ["decreasing_item_amount", "shortening_interval"];
    for (place, kind) in conditions.into_iter().enumerate() {
        let name = format!("{update}[schedule_at_period_end][conditions][{place}][type]");
        form = form.with(&name, kind);
    }
    let mut products: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (product, price) in &terms.prices {
        products.entry(product).or_default().push(made.price(price)?);
    }
    for (place, (product, prices)) in products.into_iter().enumerate() {
        let entry = format!("{update}[products][{place}]");
        form = form.with(&format!("{entry}[product]"), product);
        form = form.list(&format!("{entry}[prices]"), &prices);
    }
    Ok(form)
}

fn change_of(change: &Change, made: &Made) -> Result<(String, Body)> {
    let form = Form::default();
    let (list, id, action, body) = match change {
        Change::RenameMeter { id, display_name } => {
            ("/v1/billing/meters", id, "", form.with("display_name", display_name).body())
        }
        Change::ReactivateMeter { id } => ("/v1/billing/meters", id, "/reactivate", form.body()),
        Change::UpdateProduct { id, name } => {
            let form = form.with("active", true);
            let form = match name {
                Some(name) => form.with("name", name),
                None => form,
            };
            ("/v1/products", id, "", form.body())
        }
        Change::SetDefaultPrice { product, price } => {
            let form = form.with("default_price", made.price(price)?);
            ("/v1/products", product, "", form.body())
        }
        Change::ReactivatePrice { id } => ("/v1/prices", id, "", form.with("active", true).body()),
        Change::MarkPrice { id, plan_id } => {
            ("/v1/prices", id, "", form.marked(PLAN_MARK, plan_id).body())
        }
        Change::ArchivePrice { id } => ("/v1/prices", id, "", form.with("active", false).body()),
        Change::UpdatePortal { id, terms } => {
            ("/v1/billing_portal/configurations", id, "", portal_form(terms, made)?.body())
        }
        Change::UpdateEndpoint { id, events } => {
            let form = form.with("disabled", false).list("enabled_events", events);
            ("/v1/webhook_endpoints", id, "", form.body())
        }
        Change::UpdateDestination { id, events } => {
            let body = Body::Json(json!({ "enabled_events": events }));
            ("/v2/core/event_destinations", id, "", body)
        }
        Change::EnableDestination { id } => {
            ("/v2/core/event_destinations", id, "/enable", Body::Json(json!({})))
        }
    };
    Ok((format!("{list}/{}{action}", read::segment(id)?), body))
}
