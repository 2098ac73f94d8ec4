//! Links into Stripe's customer portal.

use serde::Serialize;

use super::{Stripe, StripeError};

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
