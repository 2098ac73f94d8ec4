//! One Starter customer's month: 160 runs, the nudge, 200 runs, the gate, the upgrade, open again, a
//! day later the mail, and every unit at Stripe. Each line is printed once it was seen to be so.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Value, json};

use super::Sandbox;
use super::actors::{Actors, caught_mails};
use crate::clock::Timestamp;

const DAY: Duration = Duration::from_secs(86_400);
const MINUTE: Duration = Duration::from_secs(60);
/// How long the daemon may take, on the wall clock, to do what is due.
const PATIENCE: Duration = Duration::from_secs(20);
/// Who Acme is to Stripe, with a card that works.
const ACME: &str = "email=ada@acme.example&name=Acme&payment_method=pm_card_visa\
    &invoice_settings[default_payment_method]=pm_card_visa";

pub async fn tell(sandbox: &Sandbox) -> anyhow::Result<()> {
    let story = Story { sandbox, actors: Actors::new(sandbox), began_at: sandbox.clock.now() };
    let (stripe_id, subscription_id) = story.acme_subscribes().await?;
    story.runs_until_the_nudge(&stripe_id).await?;
    story.runs_until_the_cap(&stripe_id).await?;
    story.upgrades(&subscription_id).await?;
    story.reads_what_is_new().await?;
    story.is_billed_to_the_unit(&stripe_id).await?;
    story.support_finds_nothing_amiss().await
}

struct Story<'a> {
    sandbox: &'a Sandbox,
    actors: Actors<'a>,
    began_at: Timestamp,
}

impl Story<'_> {
    /// Prints a line of the timeline.
    fn say(&self, what: &str) {
        let passed = self.sandbox.clock.now().since(self.began_at);
        println!("day {:>2}  ✓ {what}", passed.as_secs() / DAY.as_secs() + 1);
    }

    fn pass(&self, time: Duration) {
        self.sandbox.clock.advance(time);
    }

    /// Asks again and again until something is true, for as long as patience lasts.
    async fn until<T>(
        &self,
        what: &str,
        mut seen: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        const PAUSE: Duration = Duration::from_millis(50);
        for _ in 0..PATIENCE.as_millis() / PAUSE.as_millis() {
            if let Some(seen) = seen().await? {
                return Ok(seen);
            }
            // The daemon works on the wall clock, whatever the story's clock says.
            tokio::time::sleep(PAUSE).await;
        }
        bail!("{what}: not seen within {} s", PATIENCE.as_secs())
    }

    async fn mail_arrives(&self, subject: &str) -> anyhow::Result<()> {
        self.until(subject, async || {
            let mails = caught_mails(&self.sandbox.mail_dir);
            Ok(mails.iter().any(|mail| mail.subject == subject).then_some(()))
        })
        .await?;
        self.say(&format!("mail: {subject}"));
        Ok(())
    }

    /// One run through the gate, counted if it is allowed.
    async fn run(&self) -> anyhow::Result<Value> {
        let body = json!({"customer_id": "acme", "feature_id": "ai_runs", "send_event": true});
        self.actors.product("POST", "/v1/check", &body).await
    }

    async fn runs(&self, count: u32) -> anyhow::Result<Value> {
        let mut last = Value::Null;
        for _ in 0..count {
            last = self.run().await?;
            ensure!(last["allowed"] == true, "a run was denied: {last}");
        }
        Ok(last)
    }

    async fn acme_subscribes(&self) -> anyhow::Result<(String, String)> {
        let stripe = &self.actors;
        let customer = stripe.stripe("POST", "/v1/customers", ACME).await?;
        let stripe_id = text(&customer, "id")?;
        let body = json!({
            "email": "ada@acme.example", "name": "Acme", "stripe_customer_id": stripe_id,
        });
        stripe.product("PUT", "/v1/customers/acme", &body).await?;
        let price = self.price("starter_monthly").await?;
        let form = format!("customer={stripe_id}&items[0][price]={price}");
        let subscription = stripe.stripe("POST", "/v1/subscriptions", &form).await?;
        self.until("the Starter subscription", async || {
            let acme = stripe.product("GET", "/v1/customers/acme", &Value::Null).await?;
            Ok((acme["subscription"]["status"] == "active").then_some(()))
        })
        .await?;
        self.say(
            "Acme subscribes to Starter at Stripe: 200 AI runs a month, the webhook has arrived",
        );
        Ok((stripe_id, text(&subscription, "id")?))
    }

    async fn price(&self, lookup_key: &str) -> anyhow::Result<String> {
        let found = self
            .actors
            .stripe("GET", &format!("/v1/prices?lookup_keys[]={lookup_key}"), "")
            .await?;
        text(&found["data"][0], "id")
    }

    async fn runs_until_the_nudge(&self, stripe_id: &str) -> anyhow::Result<()> {
        for day in 1..=13 {
            self.runs(12).await?;
            self.pass(DAY);
            // No day passes while a meter event is on its way: a day later Stripe may not know it
            // again, and the daemon would rightly park it.
            self.arrives_at_stripe(stripe_id, 12 * day).await?;
        }
        let before = self.runs(3).await?;
        ensure!(before["threshold"]["state"] == "ok", "159 runs are not 80 % yet: {before}");
        let nudged = self.runs(1).await?;
        ensure!(nudged["threshold"]["state"] == "nudge", "160 of 200 runs are 80 %: {nudged}");
        self.say("160 runs: 80 % of the cap, the banner's state is \"nudge\"");
        self.pass(MINUTE);
        self.mail_arrives("You've used 80% of your AI runs this month.").await
    }

    async fn runs_until_the_cap(&self, stripe_id: &str) -> anyhow::Result<()> {
        self.pass(4 * DAY);
        self.arrives_at_stripe(stripe_id, 160).await?;
        let last = self.runs(40).await?;
        ensure!(last["balance"]["remaining"] == 0, "200 runs leave nothing: {last}");
        let denied = self.run().await?;
        ensure!(
            denied["allowed"] == false && denied["reason"] == "limit_reached",
            "run 201: {denied}"
        );
        ensure!(denied["balance"]["usage"] == 200, "a denied run is not counted: {denied}");
        self.say("200 runs; run 201 is denied: limit_reached");
        self.say(&format!("the gate says: {}", text(&denied["upgrade"], "message")?));
        self.pass(MINUTE);
        self.mail_arrives("You've used all of your AI runs this month.").await
    }

    async fn upgrades(&self, subscription_id: &str) -> anyhow::Result<()> {
        let path = format!("/v1/subscriptions/{subscription_id}");
        let subscription = self.actors.stripe("GET", &path, "").await?;
        let item = text(&subscription["items"]["data"][0], "id")?;
        let price = self.price("pro_monthly").await?;
        self.actors
            .stripe("POST", &path, &format!("items[0][id]={item}&items[0][price]={price}"))
            .await?;
        let open = self
            .until("the gate opens", async || {
                let answer = self.run().await?;
                Ok((answer["allowed"] == true).then_some(answer))
            })
            .await?;
        ensure!(
            open["plan_id"] == "pro" && open["balance"]["usage"] == 201,
            "on Pro, usage goes on: {open}"
        );
        self.say("Acme upgrades to Pro at Stripe; the gate is open again and run 201 is counted");
        Ok(())
    }

    async fn reads_what_is_new(&self) -> anyhow::Result<()> {
        let subject = "Your AI runs are now uncapped.";
        let early = caught_mails(&self.sandbox.mail_dir);
        ensure!(
            early.iter().all(|mail| mail.subject != subject),
            "the upgrade mail is a day early"
        );
        self.pass(DAY + MINUTE);
        self.mail_arrives(subject).await
    }

    async fn is_billed_to_the_unit(&self, stripe_id: &str) -> anyhow::Result<()> {
        self.pass(10 * MINUTE);
        self.arrives_at_stripe(stripe_id, 201).await?;
        let events = self.sandbox.stripe.meter_events().len();
        let billed = self.billed(stripe_id);
        self.say(&format!("Stripe has {billed} AI runs of 201, in {events} meter events"));
        Ok(())
    }

    /// Waits until Stripe has as many runs as were counted.
    async fn arrives_at_stripe(&self, stripe_id: &str, runs: u32) -> anyhow::Result<()> {
        self.until("the meter events at Stripe", async || {
            Ok((self.billed(stripe_id) == runs.to_string()).then_some(()))
        })
        .await
        .with_context(|| format!("Stripe has {} of {runs} runs", self.billed(stripe_id)))
    }

    fn billed(&self, stripe_id: &str) -> String {
        self.sandbox.stripe.sum_of(stripe_id, "ai_runs").to_string()
    }

    async fn support_finds_nothing_amiss(&self) -> anyhow::Result<()> {
        let report = self
            .until("a sync without differences", async || {
                let report = self.actors.support_syncs("acme").await?;
                Ok(report.filter(|report| report["differences"] == json!([])))
            })
            .await?;
        ensure!(report["changed"] == false, "a dry run changes nothing: {report}");
        let mails = caught_mails(&self.sandbox.mail_dir).len();
        ensure!(mails == 3, "three mails, each once: there are {mails}");
        self.say("support's sync finds no difference; three mails were sent, each once");
        Ok(())
    }
}

fn text(value: &Value, field: &str) -> anyhow::Result<String> {
    value[field]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("{field} is missing in {value}"))
}
