//! A simulated Stripe account, and what stories need to stand in it.

use serde_json::Value;
use tollgate::clock::Clock;
use tollgate::entropy::Entropy;
use tollgate::sim::{SeedPrice, SimConfig, Simulator};

use super::world::World;

/// Where usage is reported to.
pub const METER_EVENTS: &str = "/v1/billing/meter_events";

/// A new account that takes this key, on a port of its own. Its ids are the same in every run.
pub async fn simulator(clock: Clock, key: &str) -> Simulator {
    let config = SimConfig {
        clock,
        entropy: Entropy::seeded(7),
        api_key: key.to_owned(),
        listen: ([127, 0, 0, 1], 0).into(),
    };
    Simulator::start(config).await.expect("the simulator starts")
}

/// A price in dollars a month.
pub fn monthly(lookup_key: &str, amount_minor: i64) -> SeedPrice<'_> {
    SeedPrice { lookup_key, amount_minor, currency: "usd", interval: "month" }
}

impl World {
    /// A Stripe customer on Pro of whom nobody here has heard; what came of it is on its way.
    /// Answers the ids of the customer, which was made with `more`, and of its subscription.
    pub async fn stranger_on_pro(&self, more: &[(&str, &str)]) -> (String, String) {
        let stripe_id = self.stripe_customer(more).await;
        let subscription = self.subscribe_quietly(&stripe_id, &[]).await;
        (stripe_id, subscription)
    }

    /// Gives a Stripe customer Pro, without anything arriving here yet; answers the subscription.
    pub async fn subscribe_quietly(&self, stripe_id: &str, more: &[(&str, &str)]) -> String {
        let price = self.price("pro_monthly").await;
        let form = [&[("customer", stripe_id), ("items[0][price]", &price)], more].concat();
        text(&self.stripe("POST", "/v1/subscriptions", &form).await["id"])
    }

    /// A price of one cent for each unit of the account's first meter; answers its id.
    pub async fn metered_price(&self) -> String {
        let meters = self.stripe("GET", "/v1/billing/meters", &[]).await;
        let form = [
            ("currency", "usd"),
            ("unit_amount", "1"),
            ("product_data[name]", "Runs beyond"),
            ("recurring[interval]", "month"),
            ("recurring[usage_type]", "metered"),
            ("recurring[meter]", &text(&meters["data"][0]["id"])),
        ];
        text(&self.stripe("POST", "/v1/prices", &form).await["id"])
    }
}

fn text(id: &Value) -> String {
    id.as_str().expect("an id").to_owned()
}
