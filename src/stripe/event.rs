//! What a webhook tells us: who is meant, not what is so.
//!
//! Only names are read, from snapshot events (`"object": "event"`) and thin ones
//! (`"object": "v2.core.event"`) alike. Nothing but the id and the type is required, and a field
//! of an unexpected shape is as good as absent, because an event that we cannot read in full must
//! still be stored and answered with success: Stripe would else send it again for three days.

use serde_json::Value;

use super::objects::CUSTOMER_ID_KEY;
use crate::clock::Timestamp;
use crate::domain::ids::{InvalidId, printable_ascii};

/// Stripe's ids and types are far shorter.
const MAX_TEXT: usize = 255;

/// An event of Stripe's, reduced to what the inbox needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    /// As sent: thin events of v1 objects begin with `v1.`.
    pub event_type: String,
    /// The version in which the endpoint renders its snapshots.
    pub api_version: Option<String>,
    pub livemode: Option<bool>,
    pub created_at: Option<Timestamp>,
    pub object_id: Option<String>,
    /// The object's own word for itself, such as `subscription` or `checkout.session`.
    pub object_type: Option<String>,
    pub stripe_customer_id: Option<String>,
    pub subscription_id: Option<String>,
    /// The product's customer id, on checkout sessions it has started.
    pub client_reference_id: Option<String>,
    /// `metadata.tollgate_customer_id` of the object or of an invoice's subscription.
    pub tollgate_customer_id: Option<String>,
}

/// Why a body is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the body is not JSON")]
    NotJson,
    #[error("the event has no {field}")]
    Missing { field: &'static str },
    #[error("the event's {field} {problem}")]
    Invalid { field: &'static str, problem: InvalidId },
}

/// Reads an event. Verify its signature first.
///
/// # Errors
/// When the body is not JSON, or has no usable `id` or `type`.
pub fn parse(body: &[u8]) -> Result<Event, EventError> {
    let event: Value = serde_json::from_slice(body).map_err(|_| EventError::NotJson)?;
    let thin = event["object"] == "v2.core.event";
    let (object, type_field) = if thin {
        (&event["related_object"], "type")
    } else {
        (&event["data"]["object"], "object")
    };
    let object_id = text(&object["id"]);
    let object_type = text(&object[type_field]);
    // What a thin event calls the type of a v1 object is not documented; its id tells it too.
    let is = |word: &str, prefix: &str| {
        object_type.as_deref() == Some(word)
            || thin && object_id.as_ref().is_some_and(|id| id.starts_with(prefix))
    };
    let names = Names::in_object(object);
    Ok(Event {
        id: required(&event, "id")?,
        event_type: required(&event, "type")?,
        api_version: text(&event["api_version"]),
        livemode: event["livemode"].as_bool(),
        created_at: moment(&event["created"]),
        stripe_customer_id: if is("customer", "cus_") {
            object_id.clone()
        } else {
            names.stripe_customer_id
        },
        subscription_id: if is("subscription", "sub_") {
            object_id.clone()
        } else {
            names.subscription_id
        },
        client_reference_id: names.client_reference_id,
        tollgate_customer_id: names.tollgate_customer_id,
        object_id,
        object_type,
    })
}

/// Whom an object of Stripe's names: a subscription, a Checkout Session, an invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub stripe_customer_id: Option<String>,
    pub subscription_id: Option<String>,
    pub client_reference_id: Option<String>,
    pub tollgate_customer_id: Option<String>,
}

impl Names {
    pub fn in_object(object: &Value) -> Self {
        let invoiced = &object["parent"]["subscription_details"];
        Self {
            stripe_customer_id: id_of(&object["customer"]),
            subscription_id: id_of(&object["subscription"])
                .or_else(|| id_of(&invoiced["subscription"])),
            client_reference_id: text(&object["client_reference_id"]),
            tollgate_customer_id: [object, &object["subscription_details"], invoiced]
                .into_iter()
                .find_map(|holder| text(&holder["metadata"][CUSTOMER_ID_KEY])),
        }
    }
}

impl Event {
    /// The customer of ours that the event names itself.
    pub fn names_customer(&self) -> Option<&str> {
        self.client_reference_id.as_deref().or(self.tollgate_customer_id.as_deref())
    }
}

/// The types of events that are a reason to fetch the customer's subscriptions again; a thin event
/// has `v1.` before it. Few enough for one list of Stripe's, which takes 20.
pub const CONCERN_TIER: [&str; 17] = [
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    // Linking: the customer's metadata may name ours.
    "customer.created",
    "customer.updated",
    "customer.deleted",
];

/// What becomes of meter events that were received and not counted; no snapshot event tells it.
pub const TELL_OF_METERS: [&str; 2] =
    ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"];

/// Whether an event of this type is a reason to fetch the customer's subscriptions again.
///
/// No event sends a mail: the three mails there are tell of usage and of upgrades. A payment that
/// failed, or needs its customer (`invoice.payment_failed`, `invoice.payment_action_required`), and
/// a trial that is about to end (`trial_will_end`) are told by Stripe's own mails, which the
/// account's settings send. So the first two only change the tier, and the last is ignored.
///
/// Of the rest, some announce what will come with an event of its own (schedules,
/// `invoice.upcoming`), some are about what plans here do not come from (entitlement summaries), and
/// most have nothing to do with us. All are stored.
pub fn concerns_tier(event_type: &str) -> bool {
    CONCERN_TIER.contains(&event_type.strip_prefix("v1.").unwrap_or(event_type))
}

/// Whether an event tells of meter events that came to nothing.
pub fn concerns_meter_events(event_type: &str) -> bool {
    TELL_OF_METERS.contains(&event_type)
}

fn required(event: &Value, field: &'static str) -> Result<String, EventError> {
    let text = event[field].as_str().ok_or(EventError::Missing { field })?;
    printable_ascii(text, MAX_TEXT).map_err(|problem| EventError::Invalid { field, problem })?;
    Ok(text.to_owned())
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str()?;
    printable_ascii(text, MAX_TEXT).ok()?;
    Some(text.to_owned())
}

/// The id of a reference, which is an id or the whole object.
fn id_of(reference: &Value) -> Option<String> {
    text(reference).or_else(|| text(&reference["id"]))
}

/// Snapshots give seconds, thin events RFC 3339.
fn moment(value: &Value) -> Option<Timestamp> {
    match value.as_i64() {
        Some(seconds) => Some(Timestamp::from_seconds(seconds)),
        None => value.as_str()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(event: &Value) -> Event {
        parse(event.to_string().as_bytes()).unwrap()
    }

    /// A snapshot event around `object`.
    fn snapshot(event_type: &str, object: &Value) -> Event {
        read(&json!({
            "id": "evt_1", "object": "event", "type": event_type, "livemode": false,
            "api_version": "2026-09-30.endive", "created": 1_800_000_000,
            "pending_webhooks": 1, "request": {"id": null}, "data": {"object": object},
        }))
    }

    #[test]
    fn a_snapshot_of_a_subscription_names_everybody() {
        let event = snapshot(
            "customer.subscription.updated",
            &json!({"id": "sub_1", "object": "subscription", "customer": "cus_1",
                    "metadata": {"tollgate_customer_id": "acme"}, "items": {"data": []}}),
        );
        assert_eq!(
            event,
            Event {
                id: "evt_1".to_owned(),
                event_type: "customer.subscription.updated".to_owned(),
                api_version: Some("2026-09-30.endive".to_owned()),
                livemode: Some(false),
                created_at: Some(Timestamp::from_seconds(1_800_000_000)),
                object_id: Some("sub_1".to_owned()),
                object_type: Some("subscription".to_owned()),
                stripe_customer_id: Some("cus_1".to_owned()),
                subscription_id: Some("sub_1".to_owned()),
                client_reference_id: None,
                tollgate_customer_id: Some("acme".to_owned()),
            }
        );
    }

    #[test]
    fn a_checkout_links_by_its_reference() {
        let event = snapshot(
            "checkout.session.completed",
            &json!({"id": "cs_1", "object": "checkout.session", "customer": {"id": "cus_1"},
                    "subscription": "sub_1", "client_reference_id": "acme", "metadata": null}),
        );
        assert_eq!(event.stripe_customer_id.as_deref(), Some("cus_1"), "from an expanded object");
        assert_eq!(event.subscription_id.as_deref(), Some("sub_1"));
        assert_eq!(event.client_reference_id.as_deref(), Some("acme"));
        assert_eq!(event.tollgate_customer_id, None);
    }

    #[test]
    fn an_invoice_names_its_subscription_in_every_version() {
        let details = json!({"subscription": {"id": "sub_1"},
                             "metadata": {"tollgate_customer_id": "acme"}});
        for object in [
            json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "metadata": {},
                   "parent": {"type": "subscription_details", "subscription_details": details}}),
            json!({"id": "in_1", "object": "invoice", "customer": "cus_1", "subscription": "sub_1",
                   "subscription_details": details}),
        ] {
            let event = snapshot("invoice.paid", &object);
            assert_eq!(event.object_id.as_deref(), Some("in_1"));
            assert_eq!(event.stripe_customer_id.as_deref(), Some("cus_1"));
            assert_eq!(event.subscription_id.as_deref(), Some("sub_1"));
            assert_eq!(event.tollgate_customer_id.as_deref(), Some("acme"));
        }
    }

    #[test]
    fn an_upcoming_invoice_has_no_id_and_a_customer_is_its_own() {
        let upcoming =
            snapshot("invoice.upcoming", &json!({"object": "invoice", "customer": "cus_1"}));
        assert_eq!(upcoming.object_id, None);
        assert_eq!(upcoming.stripe_customer_id.as_deref(), Some("cus_1"));
        let deleted = snapshot("customer.deleted", &json!({"id": "cus_1", "object": "customer"}));
        assert_eq!(deleted.stripe_customer_id.as_deref(), Some("cus_1"));
        assert_eq!(deleted.subscription_id, None);
    }

    #[test]
    fn a_thin_event_names_its_related_object() {
        let thin = |kind: &str, related: &Value| {
            read(&json!({"id": "evt_1", "object": "v2.core.event", "type": kind, "livemode": true,
                         "created": "2027-01-15T08:00:00.000Z", "related_object": related}))
        };
        for word in ["subscription", "customer.subscription"] {
            let event = thin(
                "v1.customer.subscription.updated",
                &json!({"id": "sub_1", "type": word, "url": "/v1/subscriptions/sub_1"}),
            );
            assert_eq!(event.subscription_id.as_deref(), Some("sub_1"), "{word}");
            assert_eq!(event.stripe_customer_id, None);
            assert_eq!(event.created_at, Some(Timestamp::from_seconds(1_800_000_000)));
            assert_eq!(event.livemode, Some(true));
            assert!(concerns_tier(&event.event_type));
        }
        let customer = thin("v1.customer.deleted", &json!({"id": "cus_1", "type": "customer"}));
        assert_eq!(customer.stripe_customer_id.as_deref(), Some("cus_1"));
        let meter = thin("v1.billing.meter.no_meter_found", &Value::Null);
        assert_eq!((meter.object_id, meter.object_type), (None, None));
    }

    #[test]
    fn a_field_of_an_unexpected_shape_is_as_good_as_absent() {
        let event = read(&json!({
            "id": "evt_1", "type": "brand.new", "livemode": "yes", "created": {"at": 1},
            "data": {"object": {"id": 7, "object": ["subscription"], "customer": 5,
                "client_reference_id": "x".repeat(256), "metadata": "none"}},
        }));
        assert_eq!(event.livemode, None);
        assert_eq!(event.created_at, None);
        assert_eq!(event.object_id, None);
        assert_eq!(event.stripe_customer_id, None);
        assert_eq!(event.client_reference_id, None, "no id is that long");
        assert_eq!(event.tollgate_customer_id, None);
    }

    #[test]
    fn an_event_without_a_usable_id_or_type_is_none() {
        let parse = |text: &str| parse(text.as_bytes());
        assert_eq!(parse("<html>"), Err(EventError::NotJson));
        assert_eq!(parse(""), Err(EventError::NotJson));
        assert_eq!(parse("[]"), Err(EventError::Missing { field: "id" }));
        assert_eq!(parse(r#"{"id":1,"type":"a"}"#), Err(EventError::Missing { field: "id" }));
        assert_eq!(parse(r#"{"id":"evt_1"}"#), Err(EventError::Missing { field: "type" }));
        assert_eq!(
            parse(r#"{"id":"evt\u0000","type":"a"}"#),
            Err(EventError::Invalid { field: "id", problem: InvalidId::NotPrintable })
        );
        let long = format!(r#"{{"id":"{}","type":"a"}}"#, "x".repeat(256));
        let problem = InvalidId::TooLong { max: 255 };
        assert_eq!(parse(&long), Err(EventError::Invalid { field: "id", problem }));
    }

    #[test]
    fn each_type_is_known_to_concern_the_tier_or_not() {
        for (event_type, concerns) in [
            ("customer.subscription.created", true),
            ("customer.subscription.updated", true),
            ("customer.subscription.deleted", true),
            ("customer.subscription.paused", true),
            ("customer.subscription.resumed", true),
            ("customer.subscription.pending_update_applied", true),
            ("customer.subscription.pending_update_expired", true),
            ("customer.subscription.trial_will_end", false),
            ("checkout.session.completed", true),
            ("checkout.session.async_payment_succeeded", true),
            ("checkout.session.async_payment_failed", true),
            ("checkout.session.expired", true),
            ("invoice.paid", true),
            ("invoice.payment_failed", true),
            ("invoice.payment_action_required", true),
            ("invoice.upcoming", false),
            ("invoice.created", false),
            ("customer.created", true),
            ("customer.updated", true),
            ("customer.deleted", true),
            ("customer.tax_id.created", false),
            ("entitlements.active_entitlement_summary.updated", false),
            ("subscription_schedule.created", false),
            ("charge.refunded", false),
            ("billing.meter.error_report_triggered", false),
            ("", false),
        ] {
            assert_eq!(concerns_tier(event_type), concerns, "{event_type}");
            assert_eq!(concerns_tier(&format!("v1.{event_type}")), concerns, "thin {event_type}");
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
