//! Asking Stripe about events: whom a thin one is about, and which ones it could not deliver.

use miniserde::json;
use serde::Serialize;
use stripe_client_core::{RequestBuilder, StripeMethod};

use super::event::{CONCERN_TIER, Event, Names, parse};
use super::objects::{path_segment, unless_missing};
use super::{Stripe, StripeError};
use crate::clock::Timestamp;

/// The most Stripe gives on one page.
const PAGE: i64 = 100;

/// Whom an object is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Whose {
    /// `None` for what is about nobody, as a Checkout that was left early.
    pub stripe_customer_id: Option<String>,
    /// The customer of ours that the object names.
    pub tollgate_customer_id: Option<String>,
}

/// A page of events, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EventPage {
    /// Each with its body as a webhook would bring it.
    pub events: Vec<(Event, String)>,
    /// After which event the next page begins; `None` after the last one.
    pub next: Option<String>,
}

impl Stripe {
    /// Whom a subscription, a Checkout Session or an invoice is about, as it is now; `None` if
    /// Stripe has none by this id. Of anything else it is not asked: that is about nobody.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn whose(&self, object_id: &str) -> Result<Option<Whose>, StripeError> {
        let collection = match object_id.split_once('_') {
            Some(("sub", _)) => {
                let found = self.subscription(object_id).await?;
                return Ok(found.map(|subscription| Whose {
                    stripe_customer_id: Some(subscription.stripe_customer_id),
                    tollgate_customer_id: subscription.tollgate_customer_id,
                }));
            }
            Some(("cs", _)) => "checkout/sessions",
            Some(("in", _)) => "invoices",
            _ => return Ok(Some(Whose::default())),
        };
        let path = format!("/{collection}/{}", path_segment(object_id, "object id")?);
        let request = RequestBuilder::new(StripeMethod::Get, path).customize::<json::Value>();
        let Some(found) = unless_missing(request.send(&self.transport).await)? else {
            return Ok(None);
        };
        let found = serde_json::from_str(&json::to_string(&found)).unwrap_or_default();
        let names = Names::in_object(&found);
        Ok(Some(Whose {
            stripe_customer_id: names.stripe_customer_id,
            tollgate_customer_id: names.client_reference_id.or(names.tollgate_customer_id),
        }))
    }

    /// The events about tiers that were created in `[from, to)` and that some webhook endpoint has
    /// not taken (yet), the newest first, one page at a time: after the event `after`, if given.
    /// Stripe remembers 30 days. An event that is of no use to us is left out.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer. It refuses an `after` that it has
    /// forgotten: [`StripeError::is_missing`].
    pub async fn undelivered_events(
        &self,
        from: Timestamp,
        to: Timestamp,
        after: Option<&str>,
    ) -> Result<EventPage, StripeError> {
        #[derive(Serialize)]
        struct Created {
            gte: i64,
            lt: i64,
        }
        #[derive(Serialize)]
        struct Query<'a> {
            delivery_success: bool,
            types: &'a [&'static str],
            created: Created,
            limit: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            starting_after: Option<&'a str>,
        }
        #[derive(miniserde::Deserialize)]
        struct Found {
            data: Vec<json::Value>,
            has_more: bool,
        }
        let query = Query {
            delivery_success: false,
            types: &CONCERN_TIER,
            created: Created { gte: from.seconds(), lt: to.seconds() },
            limit: PAGE,
            starting_after: after,
        };
        let request = RequestBuilder::new(StripeMethod::Get, "/events").query(&query);
        let found: Found = request.customize().send(&self.transport).await?;
        let bodies = found.data.iter().map(json::to_string);
        let events: Vec<_> =
            bodies.filter_map(|body| Some((parse(body.as_bytes()).ok()?, body))).collect();
        let next = events.last().filter(|_| found.has_more).map(|(event, _)| event.id.clone());
        Ok(EventPage { events, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::testing::{FakeStripe, Turn, list};
    use serde_json::{Value, json};

    fn event(id: &str) -> Value {
        json!({"id": id, "object": "event", "type": "invoice.paid", "livemode": false,
               "created": 1_800_000_000, "data": {"object": {"id": "in_1", "customer": "cus_1",
               "metadata": {"odd": "é\n\u{1f600}\\"}, "amount_due": -5, "rate": 0.25}}})
    }

    #[tokio::test]
    async fn an_object_says_whose_it_is() {
        let session =
            json!({"id": "cs_1", "customer": {"id": "cus_1"}, "client_reference_id": "acme"});
        let details =
            json!({"subscription": "sub_1", "metadata": {"tollgate_customer_id": "acme"}});
        let invoice = json!({"id": "in_1", "customer": "cus_1",
                             "parent": {"subscription_details": details}});
        let missing = r#"{"error":{"type":"invalid_request_error","code":"resource_missing"}}"#;
        let fake = FakeStripe::start([
            Turn::json(200, &session.to_string()),
            Turn::json(200, &invoice.to_string()),
            Turn::json(200, r#"{"id": "cs_2", "customer": null}"#),
            Turn::json(404, missing),
        ])
        .await;
        let stripe = fake.stripe();
        let acme = Whose {
            stripe_customer_id: Some("cus_1".to_owned()),
            tollgate_customer_id: Some("acme".to_owned()),
        };
        assert_eq!(stripe.whose("cs_1").await.unwrap(), Some(acme.clone()));
        assert_eq!(stripe.whose("in_1").await.unwrap(), Some(acme));
        let nobody = Some(Whose::default());
        assert_eq!(stripe.whose("cs_2").await.unwrap(), nobody);
        assert_eq!(stripe.whose("sub_1").await.unwrap(), None, "no longer there");
        assert_eq!(stripe.whose("mtr_1").await.unwrap(), nobody, "not asked about");
        assert!(stripe.whose("sub_/../customers").await.is_err());
        let asked: Vec<_> = fake.seen().into_iter().map(|seen| seen.line).collect();
        let line = |path: &str| format!("GET /v1/{path} HTTP/1.1");
        let paths = ["checkout/sessions/cs_1", "invoices/in_1", "checkout/sessions/cs_2"];
        assert_eq!(asked[..3], paths.map(line));
    }

    #[tokio::test]
    async fn what_was_not_delivered_is_read_page_by_page_as_it_would_have_come() {
        let pages =
            [list(&[event("evt_2"), json!({"id": 7})], true), list(&[event("evt_1")], false)];
        let fake = FakeStripe::start(pages.map(|page| Turn::json(200, &page.to_string()))).await;
        let at = Timestamp::from_seconds;
        let (from, to) = (at(1_799_000_000), at(1_800_000_001));
        let first = fake.stripe().undelivered_events(from, to, None).await.unwrap();
        assert_eq!((first.events.len(), first.next.as_deref()), (1, Some("evt_2")));
        let (read, body) = &first.events[0];
        assert_eq!(read.stripe_customer_id.as_deref(), Some("cus_1"));
        assert_eq!(serde_json::from_str::<Value>(body).unwrap(), event("evt_2"));
        let last = fake.stripe().undelivered_events(from, to, first.next.as_deref()).await.unwrap();
        assert_eq!((last.events[0].0.id.as_str(), last.next), ("evt_1", None));
        let query = fake.seen()[1].query();
        let has = |name: &str, value: &str| query.contains(&(name.to_owned(), value.to_owned()));
        assert!(has("delivery_success", "false") && has("starting_after", "evt_2"), "{query:?}");
        assert!(has("created[gte]", "1799000000") && has("created[lt]", "1800000001"), "{query:?}");
        let types = query.iter().filter(|(name, _)| name.starts_with("types["));
        assert_eq!(types.count(), CONCERN_TIER.len());
    }
}
