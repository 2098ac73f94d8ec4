//! What the upgrade page says, in a customer's words.

use serde::Serialize;
use tera::Context;

use crate::clock::Timestamp;
use crate::domain::answer::offer;
use crate::domain::money::Money;
use crate::domain::plan::{Catalog, Plan};
use crate::domain::returning::Return;
use crate::domain::upgrade::{Hurdle, NoWay};
use crate::sync::upgrade::{State, UpgradeError, View};

/// One box of the page.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    heading: String,
    lines: Vec<String>,
    facts: Vec<Fact>,
    /// What the button says, and thereby whether there is one.
    button: Option<String>,
    link: Option<Link>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Fact {
    name: String,
    value: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Link {
    words: &'static str,
    url: String,
}

impl Said {
    fn new(heading: impl Into<String>, lines: &[&str]) -> Self {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        Self { heading: heading.into(), lines, ..Self::default() }
    }

    fn button(mut self, words: impl Into<String>) -> Self {
        self.button = Some(words.into());
        self
    }

    fn link(mut self, words: &'static str, url: Option<&String>) -> Self {
        self.link = url.map(|url| Link { words, url: url.clone() });
        self
    }

    fn fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.push(Fact { name: name.to_owned(), value: value.into() });
        self
    }

    fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }
}

/// `December 1`.
pub fn day(at: Timestamp) -> String {
    at.to_jiff().strftime("%B %-d").to_string()
}

/// `December 1 at 09:30 UTC`.
fn moment(at: Timestamp) -> String {
    at.to_jiff().strftime("%B %-d at %H:%M UTC").to_string()
}

/// What the page says of a view. `returned`: how the customer came back from Stripe, if it did.
pub fn say(view: &View, catalog: &Catalog, returned: Option<Return>) -> Said {
    let now = view.plan.as_ref().map_or("your plan", |plan| plan.name.as_str());
    let nothing = || Said::new("There is no other plan for you here", &[]);
    let Some(wanted) = &view.wanted else { return nothing() };
    let state = match &view.state {
        Ok(state) => state,
        Err(error) => return Said::new("Not right now", &[&of_error(error)]),
    };
    let turned_back = returned == Some(Return::Canceled);
    match state {
        State::Nothing => nothing(),
        State::On => on(wanted, returned),
        State::AtStripe if returned == Some(Return::Done) => Said::new(
            "Nearly done",
            &["Stripe has not told us of your payment yet. Load this page again in a moment."],
        ),
        State::AtStripe => {
            let said = Said::new(format!("Change to {}", wanted.name), unchanged(turned_back));
            offered(said, wanted, catalog)
                .line("You confirm it on the next page, which is Stripe's.")
                .button(format!("Continue to {}", wanted.name))
        }
        State::Confirm { due_now, later, until, ends } => {
            let said = Said::new(format!("Change to {}", wanted.name), unchanged(turned_back));
            let said = due(offered(said, wanted, catalog), *due_now);
            let said = afterwards(said, wanted, *later, *until, *ends);
            confirm(said, wanted, now, *due_now)
        }
        State::AtPeriodEnd { at, later } => {
            let said = Said::new(format!("Change to {}", wanted.name), unchanged(turned_back));
            offered(said, wanted, catalog)
                .fact("Due now", "nothing")
                .fact(&format!("{} from {}", wanted.name, day(*at)), each(*later, wanted))
                .line(format!(
                    "You keep {now} until {}. From then on it is {}.",
                    day(*at),
                    wanted.name
                ))
                .button(format!("Change to {} on {}", wanted.name, day(*at)))
        }
        State::Planned { at } => {
            let line = format!(
                "You keep {now} until {}. From then on it is {}. Nothing is due now.",
                day(*at),
                wanted.name
            );
            Said::new(format!("{} begins on {}", wanted.name, day(*at)), &[&line])
                .button(format!("Keep {now} instead"))
        }
        State::Keep { at } => {
            let line = format!("A change of your plan on {} is planned.", day(*at));
            let said = Said::new(format!("You are on the {now} plan"), &[&line]);
            let moves_on = view.plan.as_ref().is_some_and(|plan| plan.id != wanted.id);
            let first = format!("Before you can change to {}, it has to be given up.", wanted.name);
            let said = if moves_on { said.line(first) } else { said };
            said.button(format!("Keep {now}"))
        }
        State::Pending { until, url, hurdle } => {
            pending(wanted, now, *until, *hurdle).link("Finish the payment", url.as_ref())
        }
        State::Mend { url } => {
            let lines =
                ["Your last payment did not go through. Once it is paid you can change your plan."];
            Said::new("A payment is missing", &lines)
                .link("Pay the open invoice", url.as_ref())
                .button("Pay in another way")
        }
        State::Refused(no_way) => Said::new("Not right now", &[refused(*no_way)]),
    }
}

fn unchanged(turned_back: bool) -> &'static [&'static str] {
    if turned_back { &["You turned back: nothing was changed."] } else { &[] }
}

fn on(wanted: &Plan, returned: Option<Return>) -> Said {
    let done = if returned == Some(Return::Done) { "Done. " } else { "" };
    let line =
        format!("{done}You are on the {} plan, and everything in it is open to you.", wanted.name);
    Said::new(format!("You are on {}", wanted.name), &[&line])
}

/// What the wanted plan gives, and what it costs.
fn offered(mut said: Said, wanted: &Plan, catalog: &Catalog) -> Said {
    for feature_id in wanted.limits.keys() {
        let Some(feature) = catalog.features.get(feature_id) else { continue };
        said = said.fact(&feature.name, offer(feature, wanted).gives);
    }
    match &wanted.price {
        Some(price) => said.fact("Price", price.display()),
        None => said,
    }
}

fn due(said: Said, now: Money) -> Said {
    said.fact("Due now", if now.minor <= 0 { "nothing".to_owned() } else { now.to_string() })
}

/// What each period costs from `until` on; without it a new period begins at once.
fn afterwards(
    said: Said,
    wanted: &Plan,
    later: Money,
    until: Option<Timestamp>,
    ends: bool,
) -> Said {
    match until {
        Some(until) if ends => said.line(format!(
            "Your subscription ends on {}, as planned. The new plan holds until then.",
            day(until)
        )),
        Some(until) => said.fact(&format!("From {}", day(until)), each(later, wanted)),
        None if ends => said.line("Your subscription still ends, as planned."),
        None => said.fact("After that", each(later, wanted)),
    }
}

fn confirm(said: Said, wanted: &Plan, now: &str, due: Money) -> Said {
    if due.minor <= 0 {
        return said.button(format!("Change to {}", wanted.name));
    }
    said.line(format!(
        "The card you pay with is charged now. If the payment does not go through, you stay on {now}."
    ))
    .button(format!("Confirm and pay {due}"))
}

/// `$99/month`, if that is what a period of the plan comes to.
fn each(amount: Money, wanted: &Plan) -> String {
    match &wanted.price {
        Some(price) => format!("{amount}/{}", price.interval.label()),
        None => amount.to_string(),
    }
}

fn pending(wanted: &Plan, now: &str, until: Timestamp, hurdle: Hurdle) -> Said {
    let (heading, why) = match hurdle {
        Hurdle::Bank => (
            "Your bank wants you to confirm the payment",
            "You can do so on Stripe's page, or pay there with another card.",
        ),
        Hurdle::Card => {
            ("Your card was declined", "You can pay with another one on Stripe's page.")
        }
        Hurdle::Unknown => (
            "Your payment is not complete yet",
            "You can finish it on Stripe's page, with this card or another one.",
        ),
    };
    let unchanged = format!("Your plan is unchanged: you are on {now}.");
    Said::new(heading, &[&unchanged, why])
        .line(format!("{} begins as soon as it is paid.", wanted.name))
        .line(format!(
            "If you do nothing, it is dropped on {}, and nothing is charged.",
            moment(until)
        ))
}

fn refused(no_way: NoWay) -> &'static str {
    match no_way {
        NoWay::AlreadyOnPlan => "You are on this plan already.",
        NoWay::Ends => {
            "Your subscription ends when its period does. Until then you keep your plan."
        }
        NoWay::DiscountedOrOnTrial => {
            "You are on trial or have a discount, which a change to this plan would end. Ask the \
              people who sell it to you."
        }
        NoWay::Scheduled => {
            "A change of your subscription is planned already. Ask the people who sell it to you."
        }
    }
}

/// After a payment that was refused at once.
pub fn declined(view: &View, again: &str) -> Said {
    let now = view.plan.as_ref().map_or("what it was", |plan| plan.name.as_str());
    let line = format!("Your plan is unchanged: {now}. Try again, or pay with another card.");
    Said::new("Your card was declined", &[&line]).link("Try again", Some(&again.to_owned()))
}

/// The page between ours and Stripe's. A form may lead to our own address only, and Stripe's pages
/// may be at an address of the seller's own; so the way there is not a redirect of the form's.
pub fn away(url: &str) -> Context {
    let said = Said::new("On to Stripe", &["You are being taken to Stripe's page."]);
    let said = said.link("Continue", Some(&url.to_owned()));
    let mut context = Context::new();
    context.insert("title", "One moment");
    context.insert("refresh", url);
    context.insert("said", &said);
    context
}

/// What a customer may know of an error.
pub fn of_error(error: &UpgradeError) -> String {
    match error {
        UpgradeError::NoWay(no_way) => refused(*no_way).to_owned(),
        UpgradeError::NotConfigured => {
            "To upgrade, open the billing page of the product you use.".to_owned()
        }
        UpgradeError::NoTier(_) | UpgradeError::StripeCustomerDeleted => {
            "Your subscription cannot be changed here. Ask the people who sell it to you."
                .to_owned()
        }
        // Whether a change whose answer was lost took effect, only another look can tell.
        _ => {
            "The plan cannot be changed right now. Try again in a few minutes: this page then says \
              how it stands."
                .to_owned()
        }
    }
}
