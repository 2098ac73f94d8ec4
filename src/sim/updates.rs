//! Changes of a subscription: what is asked for, what it costs, and when it takes effect.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::cancellations::{self, apply_cancellation, apply_details, read_cancel_at, read_details};
use super::invoices::{self, Line, amount_of, full_line};
use super::items::{ItemChange, apply_items, check_items, read_items};
use super::life::{self, INCOMPLETE_FOR_S, Item, Pending, Status, Subscription, change};
use super::params::{MetadataChange, Params};
use super::payments::{self, Outcome};
use super::state::Call;
use super::subscriptions::{
    NOT_SIMULATED, PAYMENT_BEHAVIORS, PRORATION_BEHAVIORS, find, read_trial_end,
    read_trial_settings, render,
};

/// All that may be sent along with a change that waits for its payment.
const WITH_PENDING: [&str; 8] = [
    "billing_cycle_anchor",
    "expand",
    "items",
    "off_session",
    "payment_behavior",
    "proration_behavior",
    "proration_date",
    "trial_end",
];

/// What an update asks for.
#[derive(Default)]
pub(super) struct Update {
    pub items: Vec<ItemChange>,
    pub at_period_end: Option<bool>,
    pub cancel_at_s: Option<Option<i64>>,
    pub trial_end_s: Option<i64>,
    pub anchor_now: bool,
    pub proration: &'static str,
    pub proration_date_s: Option<i64>,
    metadata: Option<MetadataChange>,
    description: Option<Value>,
    default_payment_method: Option<Value>,
    cancellation_details: cancellations::Details,
    pause_collection: Option<Value>,
    without_card: Option<&'static str>,
}

/// What becomes of a subscription by an update, and what that costs.
pub(super) struct Planned {
    pub after: Subscription,
    pub lines: Vec<Line>,
    pub invoice_now: bool,
}

/// The part of an update that a preview takes as well.
pub(super) fn read_changes(params: &mut Params, now_s: i64) -> Result<Update, ApiError> {
    let mut anchor_now = false;
    // A hash since 2026-09-30; the word of older versions is no longer understood.
    if let Some(mut anchor) = params.section("billing_cycle_anchor")? {
        let kind = anchor.word("type", &["now", "unchanged"])?;
        anchor_now = kind.ok_or_else(|| anchor.missing("type"))? == "now";
        anchor.finish(&[])?;
    }
    Ok(Update {
        items: read_items(params)?,
        at_period_end: params.boolean("cancel_at_period_end")?,
        cancel_at_s: read_cancel_at(params, now_s)?,
        trial_end_s: read_trial_end(params, now_s)?,
        anchor_now,
        proration: params
            .word("proration_behavior", &PRORATION_BEHAVIORS)?
            .unwrap_or("create_prorations"),
        proration_date_s: params.integer("proration_date")?,
        metadata: params.metadata()?,
        ..Update::default()
    })
}

fn read_update(params: &mut Params, now_s: i64) -> Result<Update, ApiError> {
    params.boolean("off_session")?;
    let changes = read_changes(params, now_s)?;
    Ok(Update {
        description: params.clearable("description")?,
        default_payment_method: params.clearable("default_payment_method")?,
        cancellation_details: read_details(params)?,
        pause_collection: read_pause(params)?,
        without_card: read_trial_settings(params)?,
        ..changes
    })
}

/// `pause_collection`: what happens to invoices while it lasts; an empty text ends it.
fn read_pause(params: &mut Params) -> Result<Option<Value>, ApiError> {
    if !params.is_section("pause_collection") {
        return params.clearable("pause_collection");
    }
    let Some(mut pause) = params.section("pause_collection")? else { return Ok(None) };
    let words = ["keep_as_draft", "mark_uncollectible", "void"];
    let behavior = pause.word("behavior", &words)?.ok_or_else(|| pause.missing("behavior"))?;
    let resumes_at_s = pause.integer("resumes_at")?;
    pause.finish(&[])?;
    Ok(Some(json!({ "behavior": behavior, "resumes_at": resumes_at_s })))
}

pub(super) fn update(call: &mut Call<'_>, id: &str, mut params: Params) -> Result<Value, ApiError> {
    let before = find(call, id)?;
    call.enter_time_of(&before.customer);
    let behavior = params.word("payment_behavior", &PAYMENT_BEHAVIORS)?;
    let behavior = behavior.unwrap_or("allow_incomplete");
    if behavior == "pending_if_incomplete"
        && let Some(name) = params.names().find(|name| !WITH_PENDING.contains(&name.as_str()))
    {
        let message = format!(
            "When `payment_behavior` is set to `pending_if_incomplete`, the parameter `{name}` \
             cannot be passed."
        );
        return Err(ApiError::invalid(&name, message));
    }
    let update = read_update(&mut params, call.now_s())?;
    params.finish(&[&NOT_SIMULATED[..], &["collection_method", "days_until_due"]].concat())?;
    let planned = plan(call, &before, update)?;
    if before.status == Status::Trialing
        && planned.after.status == Status::Active
        && let Some(ended) = life::end_trial_without_card(call, &planned.after)
    {
        return Ok(ended);
    }
    carry_out(call, before, planned, behavior)
}

/// What an update would come to. Changes nothing yet.
pub(super) fn plan(
    call: &Call<'_>,
    before: &Subscription,
    update: Update,
) -> Result<Planned, ApiError> {
    let now_s = call.now_s();
    let touches_billing = !update.items.is_empty()
        || update.at_period_end.is_some()
        || update.cancel_at_s.is_some()
        || update.trial_end_s.is_some()
        || update.anchor_now;
    if before.status.is_terminal() && touches_billing {
        return Err(ApiError::refused(
            "A canceled subscription can only update its cancellation_details and metadata.",
        ));
    }
    let mut after = before.clone();
    if let Some(change) = &update.metadata {
        change.apply(&mut after.metadata);
    }
    after.description = update.description.unwrap_or(after.description);
    after.default_payment_method =
        update.default_payment_method.unwrap_or(after.default_payment_method);
    after.pause_collection = update.pause_collection.unwrap_or(after.pause_collection);
    after.without_card = update.without_card.unwrap_or(after.without_card);
    apply_details(&mut after, update.cancellation_details);
    apply_items(call, &mut after, update.items)?;
    if touches_billing {
        check_items(call, &after)?;
    }
    let restarts = apply_restart(before, &mut after, update.trial_end_s, update.anchor_now, now_s);
    apply_cancellation(&mut after, update.at_period_end, update.cancel_at_s, now_s);
    let from_s = update.proration_date_s.unwrap_or(now_s);
    let mut lines = match update.proration {
        _ if before.status.is_terminal() => Vec::new(),
        "none" if !restarts => Vec::new(),
        "none" => charges(call, before, &after, from_s),
        _ => {
            [credits(call, before, &after, from_s), charges(call, before, &after, from_s)].concat()
        }
    };
    // At the very end of a period there is no time left to prorate.
    lines.retain(|line| !line.proration || line.period_s.0 < line.period_s.1);
    let invoice_now = !lines.is_empty() && (restarts || update.proration == "always_invoice");
    Ok(Planned { after, lines, invoice_now })
}

/// Makes a planned change come true, or has it wait for its payment. `behavior` is Stripe's
/// `payment_behavior`.
pub(super) fn carry_out(
    call: &mut Call<'_>,
    before: Subscription,
    planned: Planned,
    behavior: &str,
) -> Result<Value, ApiError> {
    let owes = planned.lines.iter().map(|line| line.amount).sum::<i64>() > 0;
    let automatic = before.collection_method == "charge_automatically";
    let outcome = match payments::outcome(call, &planned.after) {
        outcome if planned.invoice_now && owes && automatic => outcome,
        _ => Outcome::Paid,
    };
    match (behavior, outcome.refusal()) {
        ("error_if_incomplete", Some(refusal)) => Err(refusal),
        ("pending_if_incomplete", Some(_)) => Ok(wait(call, before, planned)),
        _ => Ok(store(call, planned)),
    }
}

/// Lets a change wait until its invoice is paid: for 23 hours, or until the trial or the running
/// period ends.
fn wait(call: &mut Call<'_>, mut subscription: Subscription, planned: Planned) -> Value {
    let id = subscription.id.clone();
    if let Some(former) = subscription.pending.take() {
        invoices::void(call, &former.invoice);
    }
    let period_end_s = subscription.items.iter().map(|item| item.period_end_s).min();
    let trial_end_s = subscription.trial_end_s.filter(|end_s| *end_s > call.now_s());
    let lapses_at_s = call.now_s() + INCOMPLETE_FOR_S;
    let ends = [Some(lapses_at_s), period_end_s, trial_end_s];
    let expires_at_s = ends.into_iter().flatten().min().unwrap_or(lapses_at_s);
    let invoice = invoices::draft(call, &planned.after, "subscription_update", planned.lines);
    subscription.latest_invoice = Some(invoice.clone());
    let after = planned.after;
    subscription.pending =
        Some(Box::new(Pending { invoice: invoice.clone(), expires_at_s, after }));
    change(call, subscription);
    invoices::finalize(call, &invoice);
    render(call, &id)
}

/// Stores a changed subscription; its lines are invoiced at once or with the next invoice.
fn store(call: &mut Call<'_>, planned: Planned) -> Value {
    let Planned { mut after, lines, invoice_now } = planned;
    let id = after.id.clone();
    if !invoice_now {
        after.pending_lines.extend(lines);
        return change(call, after);
    }
    let invoice = invoices::draft(call, &after, "subscription_update", lines);
    after.latest_invoice = Some(invoice.clone());
    change(call, after);
    invoices::finalize(call, &invoice);
    render(call, &id)
}

/// Starts periods anew where Stripe does: a trial ends or moves, the anchor is set to now, or an
/// item's interval changed. Answers whether a new period began now.
fn apply_restart(
    before: &Subscription,
    after: &mut Subscription,
    trial_end_s: Option<i64>,
    anchor_now: bool,
    now_s: i64,
) -> bool {
    let interval_changed = after.items.iter().any(|item| {
        let old = before.items.iter().find(|old| old.id == item.id);
        old.is_some_and(|old| old.interval != item.interval)
    });
    if let Some(end_s) = trial_end_s.filter(|end_s| *end_s > now_s) {
        after.status = Status::Trialing;
        after.trial_start_s.get_or_insert(now_s);
        after.trial_end_s = Some(end_s);
        after.trial_end_announced = false;
        after.anchor_s = end_s;
        after.end_periods();
        return false;
    }
    let trial_ends_now = trial_end_s.is_some() && after.status == Status::Trialing;
    if !(trial_ends_now || anchor_now || interval_changed) {
        return false;
    }
    if after.status == Status::Trialing {
        after.status = Status::Active;
        after.trial_end_s = Some(now_s);
    }
    after.anchor_s = now_s;
    for item in &mut after.items {
        item.period_start_s = now_s;
        item.usage_from_s = now_s;
    }
    after.end_periods();
    true
}

/// The share of an item's full amount for the rest of its period from `from_s` on.
fn remaining(call: &Call<'_>, item: &Item, from_s: i64) -> Line {
    let from_s = from_s.clamp(item.period_start_s, item.period_end_s);
    let mut line = full_line(call.state, item, (from_s, item.period_end_s));
    let whole_s = i128::from((item.period_end_s - item.period_start_s).max(1));
    let left_s = i128::from(item.period_end_s - from_s);
    let amount = i128::from(amount_of(call.state, &item.price, item.quantity));
    let share = (amount * left_s * 2 + whole_s).div_euclid(whole_s * 2);
    line.amount = i64::try_from(share).unwrap_or(i64::MAX);
    line.proration = from_s != item.period_start_s;
    line
}

fn is_same(one: &Item, other: &Item) -> bool {
    one.id == other.id
        && one.price == other.price
        && one.quantity == other.quantity
        && one.period_start_s == other.period_start_s
}

/// What was paid for time that the change takes away: nothing for a trial. A metered price is
/// never paid in advance; in flexible billing mode what was used under it is billed now, in
/// classic mode it is lost.
fn credits(call: &Call<'_>, before: &Subscription, after: &Subscription, from_s: i64) -> Vec<Line> {
    if before.status == Status::Trialing {
        return Vec::new();
    }
    let gone = before.items.iter().filter(|old| !after.items.iter().any(|new| is_same(old, new)));
    let flexible = before.billing_mode == "flexible";
    gone.filter(|item| item.quantity.is_some() || flexible)
        .map(|item| match item.quantity {
            None => full_line(call.state, item, (item.usage_from_s, call.now_s())),
            Some(_) => {
                let mut line = remaining(call, item, from_s);
                line.amount = -line.amount;
                line.proration = true;
                line
            }
        })
        .collect()
}

/// What the change makes payable for the rest of the period.
fn charges(call: &Call<'_>, before: &Subscription, after: &Subscription, from_s: i64) -> Vec<Line> {
    if after.status == Status::Trialing {
        return Vec::new();
    }
    let new = after.items.iter().filter(|new| !before.items.iter().any(|old| is_same(old, new)));
    new.filter(|item| item.quantity.is_some()).map(|item| remaining(call, item, from_s)).collect()
}
