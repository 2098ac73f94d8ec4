//! Reading customers and subscriptions, and turning them into the domain's types.

use serde::Serialize;
use stripe_billing::subscription::{
    ListSubscription, ListSubscriptionStatus, RetrieveSubscription,
};
use stripe_client_core::{RequestBuilder, StripeMethod, StripeRequest};
use stripe_core::customer::{RetrieveCustomer, RetrieveCustomerReturned};
use stripe_types::{AsCursorOpt, List, Object};

use super::provision::PLAN_MARK;
use super::transport::Transport;
use super::{Stripe, StripeError};
use crate::clock::Timestamp;
use crate::domain::plan::Interval;
use crate::domain::subscription::{
    StripeCustomer, Subscription, SubscriptionItem, SubscriptionStatus,
};

/// The most Stripe gives on one page.
const PAGE: i64 = 100;

/// Ten thousand objects under one customer: a list that goes on longer does not end.
const MAX_PAGES: usize = 100;

/// Where our customer id stands in the metadata of Stripe's objects.
pub(super) const CUSTOMER_ID_KEY: &str = "tollgate_customer_id";

impl Stripe {
    /// The customer as it is now: `None` if Stripe has none by this id, `deleted` if it had one.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn customer(&self, id: &str) -> Result<Option<StripeCustomer>, StripeError> {
        let request = RetrieveCustomer::new(path_segment(id, "customer id")?);
        let found = unless_missing(request.customize().send(&self.transport).await)?;
        Ok(found.map(customer_from))
    }

    /// Every subscription the customer has or had, oldest first.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer, as it does for a customer it never had.
    pub async fn subscriptions_of(
        &self,
        stripe_customer_id: &str,
    ) -> Result<Vec<Subscription>, StripeError> {
        // Without `all` Stripe leaves out the canceled ones.
        let request = ListSubscription::new()
            .customer(stripe_customer_id)
            .status(ListSubscriptionStatus::All)
            .limit(PAGE);
        let first = request.customize().send(&self.transport).await?;
        let next = |cursor: &str| request.clone().starting_after(cursor).build();
        let mut subscriptions = Vec::new();
        for found in every_page(&self.transport, first, next).await? {
            subscriptions.push(self.subscription_from(found).await?);
        }
        subscriptions.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok(subscriptions)
    }

    /// The subscription as it is now, or `None` if Stripe has none by this id.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn subscription(&self, id: &str) -> Result<Option<Subscription>, StripeError> {
        let request = RetrieveSubscription::new(path_segment(id, "subscription id")?);
        match unless_missing(request.customize().send(&self.transport).await)? {
            Some(found) => self.subscription_from(found).await.map(Some),
            None => Ok(None),
        }
    }

    /// Converts a subscription, first fetching the items its embedded list leaves out.
    async fn subscription_from(
        &self,
        found: stripe_shared::Subscription,
    ) -> Result<Subscription, StripeError> {
        #[derive(Serialize)]
        struct Query<'a> {
            subscription: &'a str,
            limit: i64,
            starting_after: &'a str,
        }
        let id = found.id.as_str().to_owned();
        let next = |cursor: &str| {
            let query = Query { subscription: &id, limit: PAGE, starting_after: cursor };
            RequestBuilder::new(StripeMethod::Get, "/subscription_items").query(&query)
        };
        let items = every_page(&self.transport, found.items, next).await?;
        Ok(Subscription {
            stripe_customer_id: found.customer.id().as_str().to_owned(),
            status: SubscriptionStatus::from(found.status.as_str()),
            items: items.into_iter().map(item_from).collect(),
            created_at: Timestamp::from_seconds(found.created),
            billing_cycle_anchor: Timestamp::from_seconds(found.billing_cycle_anchor),
            ended_at: found.ended_at.map(Timestamp::from_seconds),
            cancel_at_period_end: found.cancel_at_period_end,
            cancel_at: found.cancel_at.map(Timestamp::from_seconds),
            collection_paused: found.pause_collection.is_some(),
            tollgate_customer_id: found.metadata.get(CUSTOMER_ID_KEY).and_then(|id| given(id)),
            id,
        })
    }
}

/// `first` and all pages after it; `next` asks for the page that begins after an id.
async fn every_page<T>(
    transport: &Transport,
    first: List<T>,
    next: impl Fn(&str) -> RequestBuilder,
) -> Result<Vec<T>, StripeError>
where
    T: Object,
    List<T>: miniserde::Deserialize,
{
    let mut all = first.data;
    let mut has_more = first.has_more;
    for _ in 1..MAX_PAGES {
        let Some(request) =
            all.last().filter(|_| has_more).and_then(|last| last.id().as_cursor_opt().map(&next))
        else {
            return Ok(all);
        };
        let page: List<T> = request.customize().send(transport).await?;
        // An empty page cannot move the cursor, whatever it promises.
        has_more = page.has_more && !page.data.is_empty();
        all.extend(page.data);
    }
    Err(StripeError::unreadable("a list of Stripe's does not end"))
}

/// An id goes into the path as it is, so it must not be able to change the path. Stripe's own are
/// letters, digits and underscores; old accounts chose theirs freely, mail addresses included.
pub(super) fn path_segment<'a>(id: &'a str, what: &'static str) -> Result<&'a str, StripeError> {
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"_-.@+".contains(&b);
    if id.is_empty() || id.len() > 255 || !id.bytes().all(harmless) || id.starts_with('.') {
        return Err(StripeError::unsendable(what));
    }
    Ok(id)
}

pub(super) fn unless_missing<T>(found: Result<T, StripeError>) -> Result<Option<T>, StripeError> {
    match found {
        Err(error) if error.is_missing() => Ok(None),
        found => found.map(Some),
    }
}

fn customer_from(found: RetrieveCustomerReturned) -> StripeCustomer {
    match found {
        RetrieveCustomerReturned::Customer(customer) => StripeCustomer {
            id: customer.id.as_str().to_owned(),
            deleted: false,
            email: customer.email,
            name: customer.name,
            tollgate_customer_id: customer
                .metadata
                .and_then(|metadata| metadata.get(CUSTOMER_ID_KEY).and_then(|id| given(id))),
        },
        RetrieveCustomerReturned::DeletedCustomer(customer) => StripeCustomer {
            id: customer.id.as_str().to_owned(),
            deleted: true,
            email: None,
            name: None,
            tollgate_customer_id: None,
        },
    }
}

fn item_from(item: stripe_shared::SubscriptionItem) -> SubscriptionItem {
    let recurring = item.price.recurring.as_ref();
    SubscriptionItem {
        id: item.id.as_str().to_owned(),
        price_id: item.price.id.as_str().to_owned(),
        plan_mark: item.price.metadata.get(PLAN_MARK).and_then(|mark| given(mark)),
        interval: recurring.and_then(interval),
        metered: recurring.is_some_and(|recurring| recurring.usage_type.as_str() == "metered"),
        lookup_key: item.price.lookup_key,
        period_start: Timestamp::from_seconds(item.current_period_start),
        period_end: Timestamp::from_seconds(item.current_period_end),
    }
}

/// One of those that plans have.
fn interval(recurring: &stripe_shared::Recurring) -> Option<Interval> {
    match (recurring.interval.as_str(), recurring.interval_count) {
        ("month", 1) => Some(Interval::Month),
        ("year", 1) => Some(Interval::Year),
        _ => None,
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripe::StripeErrorKind;
    use crate::stripe::testing::{FakeStripe, Turn, item, list, subscription};
    use serde_json::{Value, json};

    fn ok(body: &Value) -> Turn {
        Turn::json(200, &body.to_string())
    }

    fn pro() -> Value {
        list(&[item("si_1", Some("pro_monthly"), "licensed"), item("si_2", None, "metered")], false)
    }

    #[tokio::test]
    async fn a_subscription_is_read_with_its_items_and_their_periods() {
        let fake = FakeStripe::start([ok(&subscription("sub_1", 1_790_000_000, &pro()))]).await;
        let found = fake.stripe().subscription("sub_1").await.unwrap().unwrap();
        assert_eq!(fake.seen()[0].line, "GET /v1/subscriptions/sub_1 HTTP/1.1");
        assert_eq!(
            found,
            Subscription {
                id: "sub_1".to_owned(),
                stripe_customer_id: "cus_1".to_owned(),
                status: SubscriptionStatus::Active,
                items: vec![
                    SubscriptionItem {
                        id: "si_1".to_owned(),
                        price_id: "price_si_1".to_owned(),
                        lookup_key: Some("pro_monthly".to_owned()),
                        plan_mark: None,
                        interval: Some(Interval::Month),
                        metered: false,
                        period_start: Timestamp::from_seconds(1_800_000_000),
                        period_end: Timestamp::from_seconds(1_802_678_400),
                    },
                    SubscriptionItem {
                        id: "si_2".to_owned(),
                        price_id: "price_si_2".to_owned(),
                        lookup_key: None,
                        plan_mark: None,
                        interval: Some(Interval::Month),
                        metered: true,
                        period_start: Timestamp::from_seconds(1_800_000_000),
                        period_end: Timestamp::from_seconds(1_802_678_400),
                    },
                ],
                created_at: Timestamp::from_seconds(1_790_000_000),
                billing_cycle_anchor: Timestamp::from_seconds(1_790_000_000),
                ended_at: None,
                cancel_at_period_end: false,
                cancel_at: None,
                collection_paused: false,
                tollgate_customer_id: Some("acme".to_owned()),
            }
        );
    }

    #[tokio::test]
    async fn an_interval_that_no_plan_has_is_left_out() {
        for (interval, count, read) in
            [("year", 1, Some(Interval::Year)), ("month", 3, None), ("week", 1, None)]
        {
            let mut items = pro();
            let recurring = &mut items["data"][0]["price"]["recurring"];
            recurring["interval"] = json!(interval);
            recurring["interval_count"] = json!(count);
            let fake = FakeStripe::start([ok(&subscription("sub_1", 1, &items))]).await;
            let found = fake.stripe().subscription("sub_1").await.unwrap().unwrap();
            assert_eq!(found.items[0].interval, read, "{count} {interval}");
        }
    }

    #[tokio::test]
    async fn what_stripe_has_learnt_since_does_not_stop_the_reading() {
        let mut body = subscription("sub_1", 1, &pro());
        body["status"] = json!("hibernating");
        body["a_field_of_next_year"] = json!({"deep": [1, 2.5, null]});
        body["customer"] = json!({"id": "cus_9", "object": "customer", "created": 1,
            "livemode": false, "email": null});
        body["ended_at"] = json!(1_700_000_000);
        body["metadata"] = json!({"tollgate_customer_id": ""});
        let fake = FakeStripe::start([ok(&body)]).await;
        let found = fake.stripe().subscription("sub_1").await.unwrap().unwrap();
        assert_eq!(found.status, SubscriptionStatus::Unknown("hibernating".to_owned()));
        assert_eq!(found.stripe_customer_id, "cus_9");
        assert_eq!(found.ended_at, Some(Timestamp::from_seconds(1_700_000_000)));
        assert_eq!(found.tollgate_customer_id, None);
    }

    #[test]
    fn every_status_of_stripes_has_its_own() {
        use SubscriptionStatus::*;
        for (word, status) in [
            ("trialing", Trialing),
            ("active", Active),
            ("past_due", PastDue),
            ("unpaid", Unpaid),
            ("paused", Paused),
            ("canceled", Canceled),
            ("incomplete", Incomplete),
            ("incomplete_expired", IncompleteExpired),
        ] {
            assert_eq!(SubscriptionStatus::from(word), status);
        }
    }

    #[tokio::test]
    async fn a_subscription_without_periods_on_its_items_is_an_error() {
        let mut old = item("si_1", None, "licensed");
        old.as_object_mut().unwrap().remove("current_period_end");
        let fake = FakeStripe::start([ok(&subscription("sub_1", 1, &list(&[old], false)))]).await;
        let error = fake.stripe().subscription("sub_1").await.unwrap_err();
        assert!(error.to_string().contains("cannot be read"), "{error}");
    }

    #[tokio::test]
    async fn subscriptions_are_listed_to_the_last_page_over_one_connection() {
        let page = |ids: &[(&str, i64)], more| {
            let all: Vec<_> = ids.iter().map(|(id, at)| subscription(id, *at, &pro())).collect();
            ok(&list(&all, more))
        };
        let fake = FakeStripe::start([
            page(&[("sub_d", 40), ("sub_c", 30)], true),
            page(&[("sub_b", 20), ("sub_a", 20)], false),
        ])
        .await;
        let found = fake.stripe().subscriptions_of("cus_1").await.unwrap();
        let ids: Vec<_> = found.iter().map(|s| s.id.as_str()).collect();
        assert_eq!(ids, ["sub_a", "sub_b", "sub_c", "sub_d"]);

        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut query =
            vec![pair("customer", "cus_1"), pair("limit", "100"), pair("status", "all")];
        assert_eq!(fake.seen()[0].query(), query);
        query.insert(2, pair("starting_after", "sub_c"));
        assert_eq!(fake.seen()[1].query(), query);
        assert_eq!(fake.connections(), 1);
    }

    #[tokio::test]
    async fn items_beyond_the_embedded_list_are_fetched_too() {
        let first = list(&[item("si_1", None, "licensed")], true);
        let rest = list(&[item("si_2", Some("pro_monthly"), "licensed")], false);
        let fake = FakeStripe::start([ok(&subscription("sub_1", 1, &first)), ok(&rest)]).await;
        let found = fake.stripe().subscription("sub_1").await.unwrap().unwrap();
        assert_eq!(found.items[1].lookup_key.as_deref(), Some("pro_monthly"));
        assert_eq!(
            fake.seen()[1].line,
            "GET /v1/subscription_items?subscription=sub_1&limit=100&starting_after=si_1 HTTP/1.1"
        );
    }

    #[tokio::test]
    async fn a_list_that_promises_more_for_ever_is_given_up() {
        let page = list(&[subscription("sub_1", 1, &pro())], true).to_string();
        let turns = std::iter::repeat_with(|| Turn::json(200, &page)).take(MAX_PAGES);
        let fake = FakeStripe::start(turns).await;
        let error = fake.stripe().subscriptions_of("cus_1").await.unwrap_err();
        assert!(error.to_string().contains("does not end"), "{error}");
    }

    #[tokio::test]
    async fn a_customer_is_read_whether_it_lives_or_was_deleted() {
        let living = json!({"id": "cus_1", "object": "customer", "created": 1, "livemode": false,
            "email": "jo@example.com", "name": "Jo", "metadata": {"tollgate_customer_id": "acme"},
            "invoice_settings": {"custom_fields": null, "default_payment_method": null,
                                 "footer": null, "rendering_options": null}});
        let deleted = json!({"id": "cus_2", "object": "customer", "deleted": true});
        let fake = FakeStripe::start([ok(&living), ok(&deleted)]).await;
        let stripe = fake.stripe();
        assert_eq!(
            stripe.customer("cus_1").await.unwrap(),
            Some(StripeCustomer {
                id: "cus_1".to_owned(),
                deleted: false,
                email: Some("jo@example.com".to_owned()),
                name: Some("Jo".to_owned()),
                tollgate_customer_id: Some("acme".to_owned()),
            })
        );
        let deleted = stripe.customer("cus_2").await.unwrap().unwrap();
        assert!(deleted.deleted && deleted.id == "cus_2" && deleted.email.is_none());
    }

    #[tokio::test]
    async fn what_stripe_never_had_is_none_and_a_wrong_address_is_an_error() {
        let missing = r#"{"error":{"type":"invalid_request_error","code":"resource_missing",
            "param":"id","message":"No such customer: 'cus_1'"}}"#;
        let unknown = r#"{"error":{"type":"invalid_request_error","message":"Unrecognized URL"}}"#;
        let fake = FakeStripe::start([
            Turn::json(404, missing),
            Turn::json(404, missing),
            Turn::json(404, unknown),
        ])
        .await;
        let stripe = fake.stripe();
        assert_eq!(stripe.customer("cus_1").await, Ok(None));
        assert_eq!(stripe.subscription("sub_1").await, Ok(None));
        let error = stripe.customer("cus_1").await.unwrap_err();
        assert!(matches!(error.kind, StripeErrorKind::Refused { status: 404, .. }), "{error}");
    }

    #[tokio::test]
    async fn an_id_cannot_lead_to_another_address() {
        let fake = FakeStripe::start([]).await;
        let stripe = fake.stripe();
        let long = "x".repeat(256);
        for id in
            ["", ".", "..", "../charges", "cus_1/sources", "cus_1?a=b", "cus_1#", "%2e", &long]
        {
            let error = stripe.customer(id).await.unwrap_err();
            assert_eq!(error.kind, StripeErrorKind::Unsendable { what: "customer id" }, "{id}");
        }
        assert_eq!(fake.seen().len(), 0);
        assert!(path_segment("jo@example.com", "customer id").is_ok());
    }
}
