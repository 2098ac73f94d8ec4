//! Stripe's customer portal: the configuration that is ours, and links into it.

use std::collections::HashMap;

use serde::Serialize;

use super::calls::Page;
use super::{Stripe, StripeError};
use crate::domain::upgrade::Portal;

/// By `metadata[tollgate]=portal` a configuration says that it is ours.
const OURS: (&str, &str) = ("tollgate", "portal");
const PAGE: i64 = 100;

/// What a link into the portal opens.
#[derive(Debug, Clone, Copy)]
pub enum PortalFlow<'a> {
    /// The portal's home: how it is paid, what was, and whatever else the configuration offers.
    Home,
    /// Another way to pay, and nothing else.
    PaymentMethod,
    /// The confirmation of another price for the subscription's only item.
    Confirm { subscription_id: &'a str, item_id: &'a str, price_id: &'a str, quantity: Option<u64> },
}

impl Stripe {
    /// The active portal configuration that is ours, with the prices it lets customers change
    /// between: none at all if it does not let them.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn portal(&self) -> Result<Option<Portal>, StripeError> {
        #[derive(Serialize)]
        struct Query {
            active: bool,
            limit: i64,
        }
        let query = Query { active: true, limit: PAGE };
        let page: Page<Configuration> = self.get("/billing_portal/configurations", &query).await?;
        let ours = page.data.into_iter().find(|configuration| {
            let metadata = configuration.metadata.as_ref();
            metadata.and_then(|all| all.get(OURS.0)).is_some_and(|word| word == OURS.1)
        });
        Ok(ours.map(Portal::from))
    }

    /// A link into the portal for one customer; it is good for some minutes and one visit.
    ///
    /// Without a `configuration_id` Stripe takes the account's default one, which it may not have.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses, such as for want of a configuration.
    pub async fn portal_link(
        &self,
        stripe_customer_id: &str,
        configuration_id: Option<&str>,
        flow: PortalFlow<'_>,
        done_url: &str,
        canceled_url: &str,
    ) -> Result<String, StripeError> {
        #[derive(miniserde::Deserialize)]
        struct Made {
            url: String,
        }
        let flow_data = match flow {
            PortalFlow::Home => None,
            PortalFlow::PaymentMethod => {
                Some(FlowData::of("payment_method_update", None, canceled_url))
            }
            PortalFlow::Confirm { subscription_id, item_id, price_id, quantity } => {
                let items = [FlowItem { id: item_id, price: price_id, quantity }];
                let confirm = Confirm { subscription: subscription_id, items };
                Some(FlowData::of("subscription_update_confirm", Some(confirm), done_url))
            }
        };
        let form = SessionForm {
            customer: stripe_customer_id,
            configuration: configuration_id,
            return_url: canceled_url,
            flow_data,
        };
        let made: Made = self.post("/billing_portal/sessions", &form).await?;
        Ok(made.url)
    }
}

#[derive(miniserde::Deserialize)]
struct Configuration {
    id: String,
    metadata: Option<HashMap<String, String>>,
    features: Features,
}

#[derive(miniserde::Deserialize)]
struct Features {
    subscription_update: SubscriptionUpdate,
}

#[derive(miniserde::Deserialize)]
struct SubscriptionUpdate {
    enabled: bool,
    products: Option<Vec<Product>>,
}

#[derive(miniserde::Deserialize)]
struct Product {
    prices: Vec<String>,
}

impl From<Configuration> for Portal {
    fn from(configuration: Configuration) -> Self {
        let update = configuration.features.subscription_update;
        let prices =
            |all: Vec<Product>| all.into_iter().flat_map(|product| product.prices).collect();
        let price_ids = match update.enabled {
            true => update.products.map(prices),
            false => Some(Vec::new()),
        };
        Self { configuration_id: configuration.id, price_ids }
    }
}

#[derive(Serialize)]
struct SessionForm<'a> {
    customer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    configuration: Option<&'a str>,
    return_url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_data: Option<FlowData<'a>>,
}

#[derive(Serialize)]
struct FlowData<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subscription_update_confirm: Option<Confirm<'a>>,
    after_completion: AfterCompletion<'a>,
}

impl<'a> FlowData<'a> {
    /// One that leads to `return_url` when it is through.
    fn of(kind: &'static str, confirm: Option<Confirm<'a>>, return_url: &'a str) -> Self {
        let redirect = Redirect { return_url };
        Self {
            kind,
            subscription_update_confirm: confirm,
            after_completion: AfterCompletion { kind: "redirect", redirect },
        }
    }
}

#[derive(Serialize)]
struct Confirm<'a> {
    subscription: &'a str,
    items: [FlowItem<'a>; 1],
}

#[derive(Serialize)]
struct FlowItem<'a> {
    id: &'a str,
    price: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<u64>,
}

#[derive(Serialize)]
struct AfterCompletion<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    redirect: Redirect<'a>,
}

#[derive(Serialize)]
struct Redirect<'a> {
    return_url: &'a str,
}
