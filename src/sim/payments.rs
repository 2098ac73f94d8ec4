//! Cards, and what comes of charging them.
//!
//! Stripe's test cards decide: `pm_card_visa` pays, `pm_card_chargeCustomerFail` is declined when
//! it is charged, `pm_card_chargeDeclined` already when it is attached, and
//! `pm_card_authenticationRequired` wants its holder to confirm every payment.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::catalog::apply;
use super::events::{record, record_update};
use super::life::Subscription;
use super::params::Params;
use super::state::{Call, Page, exists, text};
use super::{Simulator, invoices};

/// How a card behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    Works,
    /// Every charge is declined.
    Declines,
    /// Every charge waits until the holder confirms it (3-D Secure).
    NeedsAuthentication,
}

impl Card {
    /// Stripe's name for a test card that behaves so.
    pub(super) fn test_name(self) -> &'static str {
        match self {
            Self::Works => "pm_card_visa",
            Self::Declines => "pm_card_chargeCustomerFail",
            Self::NeedsAuthentication => "pm_card_authenticationRequired",
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "pm_card_visa" | "pm_card_mastercard" | "pm_card_amex" => Some(Self::Works),
            "pm_card_chargeCustomerFail" => Some(Self::Declines),
            "pm_card_authenticationRequired"
            | "pm_card_threeDSecureRequired"
            | "pm_card_threeDSecure2Required" => Some(Self::NeedsAuthentication),
            _ => None,
        }
    }
}

/// What comes of an automatic payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Paid,
    Declined,
    ActionRequired,
}

impl Outcome {
    /// The refusal of a call that was to fail rather than to leave something unpaid.
    pub fn refusal(self) -> Option<ApiError> {
        match self {
            Self::Paid => None,
            Self::Declined => Some(ApiError::card_declined()),
            Self::ActionRequired => Some(ApiError::action_required()),
        }
    }
}

/// The payment method that pays for a subscription: its own, else the customer's.
pub(super) fn method_of(call: &Call<'_>, customer: &str, own: &Value) -> Option<String> {
    let customer = call.state.customers.get(customer)?;
    let default = &customer["invoice_settings"]["default_payment_method"];
    own.as_str().or(default.as_str()).map(str::to_owned)
}

/// What would come of charging a subscription's customer now: without a card nothing is paid.
pub(super) fn outcome(call: &Call<'_>, subscription: &Subscription) -> Outcome {
    let method = method_of(call, &subscription.customer, &subscription.default_payment_method);
    method.map_or(Outcome::Declined, |method| outcome_of(call, &method))
}

/// What would come of charging this payment method now.
pub(super) fn outcome_of(call: &Call<'_>, method: &str) -> Outcome {
    match call.state.cards.get(method) {
        Some(Card::Works) => Outcome::Paid,
        Some(Card::NeedsAuthentication) => Outcome::ActionRequired,
        Some(Card::Declines) | None => Outcome::Declined,
    }
}

/// Whether an automatic payment can be tried at all.
pub(super) fn check_can_pay(call: &Call<'_>, subscription: &Subscription) -> Result<(), ApiError> {
    let method = method_of(call, &subscription.customer, &subscription.default_payment_method);
    let by_invoice = subscription.collection_method != "charge_automatically";
    if method.is_some() || by_invoice {
        return Ok(());
    }
    Err(ApiError::refused(
        "This customer has no attached payment source or default payment method. Please consider \
         adding a default payment method.",
    )
    .code("resource_missing"))
}

/// Makes a payment method of a test card and gives it to a customer.
pub(super) fn attach_card(
    call: &mut Call<'_>,
    name: &str,
    customer: &str,
) -> Result<Value, ApiError> {
    if name == "pm_card_chargeDeclined" {
        return Err(ApiError::card_declined());
    }
    let Some(card) = Card::named(name) else {
        return Err(ApiError::no_such_param("PaymentMethod", name, "payment_method"));
    };
    let method = json!({
        "id": call.id("pm"),
        "object": "payment_method",
        "allow_redisplay": "unspecified",
        "billing_details": {
            "address": null, "email": null, "name": null, "phone": null, "tax_id": null,
        },
        "card": {
            "brand": "visa",
            "checks": {
                "address_line1_check": null, "address_postal_code_check": null, "cvc_check": "pass",
            },
            "country": "US",
            "display_brand": "visa",
            "exp_month": 12,
            "exp_year": 2034,
            "fingerprint": "SimulatedCard000",
            "funding": "credit",
            "generated_from": null,
            "last4": "4242",
            "networks": { "available": ["visa"], "preferred": null },
            "regulated_status": "unregulated",
            "three_d_secure_usage": { "supported": true },
            "wallet": null,
        },
        "created": call.now_s(),
        "customer": customer,
        "customer_account": null,
        "livemode": false,
        "metadata": {},
        "type": "card",
    });
    call.state.cards.insert(text(&method, "id").to_owned(), card);
    call.state.payment_methods.put(method.clone());
    record(call, "payment_method.attached", &method, None);
    Ok(method)
}

/// The payment method that a parameter names: a test card, which is attached thereby, or one that
/// the customer has already.
pub(super) fn claim(
    call: &mut Call<'_>,
    name: &str,
    customer: &str,
    param: &str,
) -> Result<String, ApiError> {
    if name.starts_with("pm_card_") {
        return Ok(text(&attach_card(call, name, customer)?, "id").to_owned());
    }
    match call.state.payment_methods.get(name) {
        Some(method) if method["customer"] == customer => Ok(name.to_owned()),
        Some(_) => Err(ApiError::refused(
            "The customer does not have a payment method with the ID given. The payment method \
             must be attached to the customer.",
        )),
        None => Err(ApiError::no_such_param("PaymentMethod", name, param)),
    }
}

pub(super) fn attach(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let customer = params.required_text("customer")?;
    params.finish(&["customer_account"])?;
    call.customer(&customer, "customer")?;
    if call.state.payment_methods.get(id).is_some() {
        return Err(ApiError::refused(
            "The payment method you provided has already been attached to a customer.",
        ));
    }
    attach_card(call, id, &customer)
}

fn find(call: &Call<'_>, id: &str) -> Result<Value, ApiError> {
    let method = call.state.payment_methods.get(id).cloned();
    method.ok_or_else(|| ApiError::no_such("PaymentMethod", id))
}

pub(super) fn detach(call: &mut Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    let before = find(call, id)?;
    let mut method = before.clone();
    method["customer"] = Value::Null;
    call.state.payment_methods.put(method.clone());
    let holder = call.state.customers.get(text(&before, "customer")).filter(exists).cloned();
    if let Some(holder) = holder
        && holder["invoice_settings"]["default_payment_method"] == id
    {
        set_default(call, holder, Value::Null);
    }
    record(call, "payment_method.detached", &method, None);
    Ok(method)
}

pub(super) fn retrieve(call: &Call<'_>, id: &str, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    find(call, id)
}

pub(super) fn list(call: &Call<'_>, mut params: Params) -> Result<Value, ApiError> {
    let page = Page::read(&mut params)?;
    let customer = params.required_text("customer")?;
    let kind = params.text("type")?;
    params.finish(&["allow_redisplay", "customer_account"])?;
    let methods = call.state.payment_methods.iter().rev().cloned();
    page.cut("/v1/payment_methods", "payment method", methods, |method| {
        method["customer"] == customer.as_str()
            && kind.as_ref().is_none_or(|kind| text(method, "type") == kind)
    })
}

/// Makes a payment method a customer's default and tells of it.
pub(super) fn set_default(call: &mut Call<'_>, before: Value, method: Value) {
    let mut customer = before.clone();
    let mut settings = customer["invoice_settings"].clone();
    settings["default_payment_method"] = method;
    apply(&mut customer, vec![("invoice_settings", Some(settings))], None);
    record_update(call, "customer.updated", &before, &customer);
    call.state.customers.put(customer);
}

impl Simulator {
    /// Gives a customer a card that behaves so and makes it the default, as the customer's own
    /// entry of a new card would. Fails if there is no such customer.
    pub fn set_card(&self, customer: &str, card: Card) -> anyhow::Result<()> {
        self.with_call(|call| {
            let holder = call.state.customers.get(customer).filter(exists).cloned();
            let holder =
                holder.ok_or_else(|| anyhow::anyhow!("there is no customer {customer}"))?;
            let method = attach_card(call, card.test_name(), customer)
                .map_err(|error| anyhow::anyhow!("{}", error.answer().body))?;
            set_default(call, holder, method["id"].clone());
            Ok(())
        })
    }

    /// The customer confirms (`confirmed`) or refuses the payment of an open invoice, as on the
    /// page that its `hosted_invoice_url` shows. Fails if the invoice is not open.
    pub fn authenticate(&self, invoice: &str, confirmed: bool) -> anyhow::Result<()> {
        self.with_call(|call| {
            let open = call.state.invoices.get(invoice).filter(|found| found["status"] == "open");
            anyhow::ensure!(open.is_some(), "there is no open invoice {invoice}");
            invoices::conclude(
                call,
                invoice,
                if confirmed { Outcome::Paid } else { Outcome::Declined },
            );
            Ok(())
        })
    }
}
