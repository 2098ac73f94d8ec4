//! What a first subscription takes: a Stripe customer, a price, and a page of Stripe's to pay on.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;

use super::calls::{Nothing, OurMetadata, Page, Unread};
use super::objects::{CUSTOMER_ID_KEY, path_segment};
use super::{Stripe, StripeError, StripeErrorKind};
use crate::clock::Timestamp;
use crate::domain::customer::Profile;

/// How far apart two clocks may be, and how long a call may be under way.
const MARGIN: Duration = Duration::from_secs(10 * 60);
const PAGE: i64 = 100;
/// Ten thousand new customers within a day are more than are looked through.
const MAX_PAGES: usize = 100;

/// A Checkout session that is to sell one plan. Every attempt sends exactly this.
#[derive(Debug, Clone, Copy)]
pub struct NewCheckout<'a> {
    /// Of ours.
    pub customer_id: &'a str,
    pub stripe_customer_id: &'a str,
    pub price_id: &'a str,
    pub success_url: &'a str,
    pub cancel_url: &'a str,
    /// Half an hour to a day from now.
    pub expires_at: Timestamp,
}

/// A Checkout session as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutSession {
    pub id: String,
    pub state: CheckoutState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckoutState {
    /// Somebody may still pay, here.
    Open {
        url: String,
    },
    /// It was paid, and there is a subscription.
    Complete,
    Expired,
}

#[derive(miniserde::Deserialize)]
struct Session {
    id: String,
    status: Option<String>,
    url: Option<String>,
}

impl From<Session> for CheckoutSession {
    fn from(session: Session) -> Self {
        let state = match (session.status.as_deref(), session.url) {
            (Some("open"), Some(url)) => CheckoutState::Open { url },
            (Some("complete"), _) => CheckoutState::Complete,
            _ => CheckoutState::Expired,
        };
        Self { id: session.id, state }
    }
}

impl Stripe {
    /// Makes the Stripe customer that stands for `customer_id`; the same one under the same key.
    ///
    /// # Errors
    /// When Stripe cannot be asked, or refuses; [`Self::key_is_spent`] tells whether that will ever
    /// be otherwise under this key.
    pub async fn create_customer(
        &self,
        customer_id: &str,
        profile: &Profile,
        key: &str,
    ) -> Result<String, StripeError> {
        #[derive(Serialize)]
        struct Form<'a> {
            #[serde(skip_serializing_if = "Option::is_none")]
            email: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            name: Option<&'a str>,
            metadata: OurMetadata<'a>,
        }
        #[derive(miniserde::Deserialize)]
        struct Made {
            id: String,
        }
        let form = Form {
            email: profile.email.as_deref(),
            name: profile.name.as_deref(),
            metadata: OurMetadata { tollgate_customer_id: customer_id },
        };
        let made: Made = self.post_once("/customers", &form, key).await?;
        Ok(made.id)
    }

    /// Whether Stripe will give no other answer under the key, though the work may have been done:
    /// it repeats an old failure, or remembers another request.
    pub fn key_is_spent(error: &StripeError) -> bool {
        match &error.kind {
            StripeErrorKind::Server { replayed, .. } => *replayed,
            StripeErrorKind::Refused { code, .. } => code.as_deref() == Some("idempotency_error"),
            _ => false,
        }
    }

    /// The Stripe customer that was made for `customer_id` within `within` after `since`, if one
    /// was. By the list, which knows what was made a moment ago, as Stripe's search does not.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn find_customer(
        &self,
        customer_id: &str,
        since: Timestamp,
        within: Duration,
    ) -> Result<Option<String>, StripeError> {
        #[derive(Serialize)]
        struct Created {
            gte: i64,
            lte: i64,
        }
        #[derive(Serialize)]
        struct Query {
            created: Created,
            limit: i64,
            #[serde(skip_serializing_if = "Option::is_none")]
            starting_after: Option<String>,
        }
        #[derive(miniserde::Deserialize)]
        struct Found {
            id: String,
            metadata: Option<HashMap<String, String>>,
        }
        let (gte, lte) = (since.minus(MARGIN).seconds(), since.plus(within).plus(MARGIN).seconds());
        let mut starting_after = None;
        for _ in 0..MAX_PAGES {
            let query = Query { created: Created { gte, lte }, limit: PAGE, starting_after };
            let page: Page<Found> = self.get("/customers", &query).await?;
            let names_ours = |found: &&Found| {
                let named = found.metadata.as_ref().and_then(|all| all.get(CUSTOMER_ID_KEY));
                named.is_some_and(|named| named == customer_id)
            };
            // The list begins with the newest; the first one made is the one.
            if let Some(found) = page.data.iter().rev().find(names_ours) {
                return Ok(Some(found.id.clone()));
            }
            starting_after = page.data.last().map(|last| last.id.clone());
            if !page.has_more || starting_after.is_none() {
                return Ok(None);
            }
        }
        Err(StripeError::unreachable("a list of Stripe's does not end"))
    }

    /// Opens a page on which the customer pays for a first subscription; the same one under the
    /// same key.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses.
    pub async fn open_checkout(
        &self,
        new: NewCheckout<'_>,
        key: &str,
    ) -> Result<CheckoutSession, StripeError> {
        let form = CheckoutForm {
            mode: "subscription",
            customer: new.stripe_customer_id,
            client_reference_id: new.customer_id,
            line_items: [LineItem { price: new.price_id, quantity: 1 }],
            subscription_data: SubscriptionData {
                billing_mode: BillingMode { kind: "flexible" },
                metadata: OurMetadata { tollgate_customer_id: new.customer_id },
            },
            success_url: new.success_url,
            cancel_url: new.cancel_url,
            expires_at: new.expires_at.seconds(),
        };
        let session: Session = self.post_once("/checkout/sessions", &form, key).await?;
        Ok(session.into())
    }

    /// The session as it is now.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn checkout_session(&self, id: &str) -> Result<CheckoutState, StripeError> {
        let path = format!("/checkout/sessions/{}", path_segment(id, "session id")?);
        let session: Result<Session, StripeError> = self.get(&path, &Nothing {}).await;
        match session {
            // Of another account, or of the other mode: nobody pays there for this one.
            Err(error) if error.is_missing() => Ok(CheckoutState::Expired),
            session => Ok(CheckoutSession::from(session?).state),
        }
    }

    /// Closes a session, so that nobody can pay on it; answers what it is then: complete if
    /// somebody was faster, and never open.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses.
    pub async fn expire_checkout(&self, id: &str) -> Result<CheckoutState, StripeError> {
        let path = format!("/checkout/sessions/{}/expire", path_segment(id, "session id")?);
        let expired: Result<Session, StripeError> = self.post(&path, &Nothing {}).await;
        match expired {
            Err(error) if matches!(error.kind, StripeErrorKind::Refused { .. }) => {
                // Only an open session can be expired: this one is over already.
                match self.checkout_session(id).await? {
                    CheckoutState::Open { .. } => Err(error),
                    over => Ok(over),
                }
            }
            expired => Ok(CheckoutSession::from(expired?).state),
        }
    }

    /// Makes it impossible to pay for a subscription whose first payment was begun and not
    /// finished; `false` if it was finished meanwhile.
    ///
    /// Its invoice is voided, which Stripe refuses for one that is paid; so this can never end a
    /// subscription that is in use, as canceling it could.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses.
    pub async fn give_up_first_payment(&self, id: &str) -> Result<bool, StripeError> {
        #[derive(Serialize)]
        struct Query {
            expand: [&'static str; 1],
        }
        #[derive(miniserde::Deserialize)]
        struct Found {
            status: String,
            latest_invoice: Option<FirstInvoice>,
        }
        #[derive(miniserde::Deserialize)]
        struct FirstInvoice {
            id: String,
            status: Option<String>,
        }
        let path = format!("/subscriptions/{}", path_segment(id, "subscription id")?);
        let found: Found = self.get(&path, &Query { expand: ["latest_invoice"] }).await?;
        if found.status != "incomplete" {
            return Ok(found.status == "incomplete_expired");
        }
        let invoice = match found.latest_invoice {
            Some(invoice) if invoice.status.as_deref() == Some("open") => invoice,
            // Paid a moment ago: the subscription is about to become active.
            Some(invoice) if invoice.status.as_deref() == Some("paid") => return Ok(false),
            _ => return Ok(true),
        };
        let path = format!("/invoices/{}/void", path_segment(&invoice.id, "invoice id")?);
        let voided: Result<Unread, StripeError> = self.post(&path, &Nothing {}).await;
        match voided {
            Err(error) if matches!(error.kind, StripeErrorKind::Refused { .. }) => Ok(false),
            voided => voided.map(|_| true),
        }
    }
}

#[derive(Serialize)]
struct CheckoutForm<'a> {
    mode: &'static str,
    customer: &'a str,
    client_reference_id: &'a str,
    line_items: [LineItem<'a>; 1],
    subscription_data: SubscriptionData<'a>,
    success_url: &'a str,
    cancel_url: &'a str,
    expires_at: i64,
}

#[derive(Serialize)]
struct LineItem<'a> {
    price: &'a str,
    quantity: u32,
}

#[derive(Serialize)]
struct SubscriptionData<'a> {
    billing_mode: BillingMode,
    metadata: OurMetadata<'a>,
}

#[derive(Serialize)]
struct BillingMode {
    #[serde(rename = "type")]
    kind: &'static str,
}
