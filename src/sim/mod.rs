//! A stateful fake of Stripe over real HTTP, meant to be no kinder than the real one.
//!
//! It speaks only Stripe's wire format (forms in, JSON out, version [`API_VERSION`]) and shares
//! nothing with our Stripe client, so that it cannot share the client's mistakes. All its time
//! comes from the [`Clock`] it is given: with a manual clock a month of renewals, retries and
//! forgotten keys passes when the test says so.
//!
//! Simulated: customers, test cards and what comes of charging them, products, prices,
//! subscriptions (trial, renewal with month-end clamping, cancellation, incomplete payments,
//! changes with prorations, changes that wait for their payment, pauses, schedules), invoices with
//! their draft hour, previews and retries, Checkout, the customer portal's deep links, meters,
//! meter events, their summaries and the reports of their failures, snapshot and thin events,
//! webhook endpoints with signed deliveries and three days of retries, idempotency keys, lists,
//! search, `expand[]`, test clocks, rate limits, locks, and the [`Faults`].
//!
//! Not simulated: tax, discounts, customer balances, tiered prices, payment intents as objects of
//! their own, Connect. A parameter of Stripe's that has no effect here is refused with a 400 that
//! says so, never silently ignored.
//!
//! What a customer does on Stripe's own pages is done by hand: [`Simulator::complete_checkout`],
//! [`Simulator::confirm_portal`], [`Simulator::authenticate`], or by the buttons of the pages that
//! the objects' addresses show.

mod account;
mod answer;
mod calendar;
mod cancellations;
mod catalog;
mod checkout;
mod clocks;
mod customers;
mod decimal;
mod destinations;
mod events;
mod faults;
mod hosted;
mod http;
mod idempotency;
mod invoices;
mod items;
mod life;
mod limits;
mod line;
mod meters;
mod one_off;
mod params;
mod payments;
mod portal;
mod preview;
mod routes;
mod schedules;
mod search;
mod state;
mod subscriptions;
#[cfg(test)]
mod tests;
mod thin;
mod updates;
mod webhooks;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use calendar::Interval;
pub use checkout::CheckoutPayment;
pub use decimal::Decimal;
pub use faults::{AfterRetries, ApiFault, FaultKind, Faults, Limit, WebhookDamage};
pub use meters::MeterEvent;
pub use payments::Card;
pub use state::{API_VERSION, LoggedRequest};

use crate::clock::{Clock, Timestamp};
use crate::entropy::Entropy;
use state::{Call, Origin, State};

/// What a simulator needs.
pub struct SimConfig {
    pub clock: Clock,
    pub entropy: Entropy,
    /// The only key it accepts.
    pub api_key: String,
    /// Port 0 takes any free one.
    pub listen: SocketAddr,
}

/// A price for [`Simulator::seed_catalog`].
#[derive(Clone, Copy, Debug)]
pub struct SeedPrice<'a> {
    pub lookup_key: &'a str,
    /// In minor units.
    pub amount_minor: i64,
    pub currency: &'a str,
    /// `day`, `week`, `month` or `year`.
    pub interval: &'a str,
}

/// A running simulator. Clones are handles to the same one.
#[derive(Clone)]
pub struct Simulator {
    shared: Arc<Shared>,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

/// What the server, the background task and the handles share.
struct Shared {
    clock: Clock,
    entropy: Entropy,
    api_key: String,
    /// Without a path.
    base_url: String,
    state: Mutex<State>,
    faults: Mutex<Faults>,
    /// Something may have become due.
    changed: Notify,
    stopped: CancellationToken,
    client: reqwest::Client,
    /// Held by whoever is delivering webhooks.
    courier: tokio::sync::Mutex<()>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.faults());
        self.changed.notify_one();
    }

    /// Does what is due, again and again, until the simulator is stopped.
    async fn run(&self) {
        loop {
            let next_due = tokio::select! {
                next_due = self.deliver_due(false) => next_due,
                () = self.stopped.cancelled() => return,
            };
            let due = async {
                match next_due {
                    Some(due_at) => self.clock.sleep_until(due_at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.changed.notified() => {}
                () = self.stopped.cancelled() => return,
            }
        }
    }

    /// Posts every webhook that is due and waits for the answers, which may bring about more.
    /// Webhooks held by [`Faults::shuffle_webhooks`] go out, newest first, only if `release_held`.
    /// Answers when something is due next.
    async fn deliver_due(&self, release_held: bool) -> Option<Timestamp> {
        let _courier = self.courier.lock().await;
        loop {
            let (shuffle, copies, damage) = {
                let faults = self.faults();
                let copies = if faults.duplicate_webhooks { 2 } else { 1 };
                (faults.shuffle_webhooks, copies, faults.webhook_damage)
            };
            let hold = shuffle && !release_held;
            let (mut postings, next_due) = self.with_call(Origin::default(), |call| {
                let postings =
                    if hold { Vec::new() } else { webhooks::take_due(call.state, call.now) };
                let scheduled = call.state.timetable.first();
                let scheduled = scheduled.map(|(at_s, _)| Timestamp::from_seconds(*at_s));
                let delivery = call.state.deliveries.next_due().filter(|_| !hold);
                (postings, [scheduled, delivery].into_iter().flatten().min())
            });
            if postings.is_empty() {
                return next_due;
            }
            if shuffle {
                postings.reverse();
            }
            for posting in postings {
                let mut delivered = false;
                for _ in 0..copies {
                    delivered |= self.post(&posting, damage).await;
                }
                let now = self.clock.now();
                self.state().deliveries.finish(posting.place, delivered, now);
            }
        }
    }

    /// Whether the endpoint took the webhook: any 2xx does, a redirect does not.
    async fn post(&self, posting: &webhooks::Posting, damage: Option<WebhookDamage>) -> bool {
        let (signature, body) = posting.arrives(self.clock.now(), damage);
        let request = self
            .client
            .post(&posting.url)
            .header("content-type", "application/json; charset=utf-8")
            .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
            .header("stripe-signature", signature)
            .body(body);
        match request.send().await {
            Ok(response) => response.status().is_success(),
            Err(_) => false,
        }
    }
}

impl Simulator {
    /// Starts serving and delivering. Fails if the address cannot be listened on.
    pub async fn start(config: SimConfig) -> anyhow::Result<Self> {
        /// How long an endpoint may take to answer a webhook; Stripe does not publish its own.
        const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(20);
        // Fails only if a provider is installed already, which is as good.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ENDPOINT_TIMEOUT)
            .no_proxy()
            .build()
            .context("cannot build the webhook client of the Stripe simulator")?;
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("the Stripe simulator cannot listen on {}", config.listen))?;
        let address = listener.local_addr().context("the simulator has no local address")?;
        let shared = Arc::new(Shared {
            clock: config.clock,
            entropy: config.entropy,
            api_key: config.api_key,
            base_url: format!("http://{address}"),
            state: Mutex::default(),
            faults: Mutex::default(),
            changed: Notify::new(),
            stopped: CancellationToken::new(),
            client,
            courier: tokio::sync::Mutex::new(()),
        });
        let server = tokio::spawn({
            let shared = shared.clone();
            async move {
                if let Err(error) = http::serve(listener, shared).await {
                    tracing::error!(%error, "the Stripe simulator stopped serving");
                }
            }
        });
        let background = tokio::spawn({
            let shared = shared.clone();
            async move { shared.run().await }
        });
        let tasks = Arc::new(Mutex::new(vec![server, background]));
        Ok(Self { shared, tasks })
    }

    /// Where it listens, without a path: `http://127.0.0.1:49152`.
    pub fn base_url(&self) -> String {
        self.shared.base_url.clone()
    }

    /// Stops serving and delivering, and returns when both have ended.
    pub async fn stop(&self) {
        self.shared.stopped.cancel();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // A task that panicked has ended too.
            let _ = task.await;
        }
    }

    fn with_call<T>(&self, work: impl FnOnce(&mut Call<'_>) -> T) -> T {
        let done = self.shared.with_call(Origin::default(), work);
        self.shared.changed.notify_one();
        done
    }

    /// Registers an endpoint for all events and answers its id.
    pub fn add_webhook_endpoint(&self, url: &str, secret: &str) -> String {
        self.with_call(|call| {
            let endpoint = webhooks::add(call, url, secret.to_owned(), &["*".to_owned()]);
            state::text(&endpoint, "id").to_owned()
        })
    }

    /// Posts every webhook that is due now, including what [`Faults::shuffle_webhooks`] holds,
    /// and returns when the endpoints have answered.
    pub async fn deliver_pending(&self) {
        self.shared.deliver_due(true).await;
    }

    /// The switches as they are.
    pub fn faults(&self) -> Faults {
        self.shared.faults().clone()
    }

    pub fn change_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.change_faults(change);
    }

    /// Adds a fault of the next `times` API calls whose path begins with `path_prefix`.
    pub fn fail_next(&self, path_prefix: &str, times: u32, kind: FaultKind) {
        let fault = ApiFault { path_prefix: path_prefix.to_owned(), times, kind };
        self.change_faults(|faults| faults.api.push(fault));
    }

    /// The exact sum that counts for one Stripe customer under one event name.
    pub fn sum_of(&self, customer: &str, event_name: &str) -> Decimal {
        let state = self.shared.state();
        let counted = state.meter_events.received.iter().filter(|event| {
            event.failure.is_none() && event.customer == customer && event.event_name == event_name
        });
        counted.map(|event| event.value).sum()
    }

    /// Every meter event that counts, in the order received.
    pub fn meter_events(&self) -> Vec<MeterEvent> {
        let state = self.shared.state();
        let received = state.meter_events.received.iter();
        received.filter(|event| event.failure.is_none()).cloned().collect()
    }

    /// Every meter event that was accepted and then came to nothing.
    pub fn meter_failures(&self) -> Vec<MeterEvent> {
        let state = self.shared.state();
        let received = state.meter_events.received.iter();
        received.filter(|event| event.failure.is_some()).cloned().collect()
    }

    /// Every event so far, in the order they happened, each with the object as it was then.
    pub fn events(&self) -> Vec<Value> {
        self.with_call(|call| call.state.events.iter().cloned().collect())
    }

    /// Every API call so far, in the order they arrived.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.shared.state().requests.clone()
    }

    /// Puts a subscription into a status that only failed or paused payment brings about, such as
    /// `past_due`, `unpaid` or `paused`, and tells of it as Stripe would. Fails if there is no
    /// such subscription or status, or if the subscription has ended.
    pub fn set_subscription_status(&self, id: &str, status: &str) -> anyhow::Result<()> {
        let status = life::Status::parse(status)
            .with_context(|| format!("Stripe has no subscription status {status}"))?;
        self.with_call(|call| {
            let found = call.state.subscriptions.get(id).cloned();
            let mut subscription =
                found.with_context(|| format!("there is no subscription {id}"))?;
            anyhow::ensure!(!subscription.status.is_terminal(), "{id} has ended");
            if status == life::Status::Canceled {
                subscription.cancellation_details["reason"] = json!("payment_failed");
                life::end(call, subscription);
            } else {
                subscription.status = status;
                life::change(call, subscription);
            }
            Ok(())
        })
    }

    /// Makes a product and a price for each of `prices` and a summing meter for each event name
    /// of `meters`, through the same code as the API. Fails on what the API would refuse.
    pub fn seed_catalog(&self, prices: &[SeedPrice<'_>], meters: &[&str]) -> anyhow::Result<()> {
        self.with_call(|call| {
            for price in prices {
                let SeedPrice { lookup_key, amount_minor, currency, interval } = price;
                let params = params::Params::from_pairs(&[
                    ("product_data[name]", lookup_key),
                    ("lookup_key", lookup_key),
                    ("unit_amount", &amount_minor.to_string()),
                    ("currency", currency),
                    ("recurring[interval]", interval),
                ]);
                catalog::create_price(call, params)
                    .map_err(|error| anyhow::anyhow!("{lookup_key}: {}", error.answer().body))?;
            }
            for event_name in meters {
                let params = params::Params::from_pairs(&[
                    ("display_name", event_name),
                    ("event_name", event_name),
                    ("default_aggregation[formula]", "sum"),
                ]);
                meters::create(call, params)
                    .map_err(|error| anyhow::anyhow!("{event_name}: {}", error.answer().body))?;
            }
            Ok(())
        })
    }
}
