//! Reads the plans file into a [`Catalog`]: first each value by its rule, then the rules between
//! keys. Mistakes are collected on the way, so that one reading finds them all.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeTable;

use super::limits::read_limits;
use super::mistakes::{PlanFileErrors, PlanFileMistake};
use super::models::{ModelPrices, read_models};
use super::reader::{Found, Node, Place, Reader, Section};
use super::rules::{self, OutageWord};
use super::{
    Catalog, CreditRate, CreditTable, Feature, Limit, OnOutage, Plan, Policy, Price, Retention,
    Schedule, Unlock,
};
use crate::domain::ids::{FeatureId, PlanId};
use crate::domain::money::{Currency, Money};

/// No honest plans file comes near this.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Room to parse on. The toml crate bounds nesting of brackets (80) and of dots in a key (80),
/// but not their product, and drops its tree recursively: 7 KB of nested dotted keys overflow a
/// worker thread's 2 MiB in a debug build. The deepest tree it lets through needs about 5 MB.
const STACK_BYTES: usize = 32 << 20;

pub(super) fn catalog(source: &str) -> Result<Catalog, PlanFileErrors> {
    if source.len() > MAX_FILE_BYTES {
        return Err(whole_file_mistake("must be at most 1 MiB"));
    }
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || parse(source))
            .map_err(|_| whole_file_mistake("cannot be read: the system has no thread to spare"))?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn whole_file_mistake(wanted: &str) -> PlanFileErrors {
    let wanted = wanted.to_owned();
    PlanFileErrors::new(vec![PlanFileMistake { line: 1, key: String::new(), wanted }])
}

fn parse(source: &str) -> Result<Catalog, PlanFileErrors> {
    let (root, syntax_errors) = DeTable::parse_recoverable(source);
    let mut reader = Reader::new(source);
    for error in &syntax_errors {
        let line = reader.line_of(error.span().map_or(0, |span| span.start));
        // One slip often breaks the rest of its line: the first complaint is the telling one.
        if reader.mistakes.last().is_none_or(|last| last.line != line) {
            let place = Place { line, key: String::new() };
            reader.wrong(&place, format!("is not TOML: {}", error.message()));
        }
    }
    if !syntax_errors.is_empty() {
        return Err(PlanFileErrors::new(reader.mistakes));
    }
    match read_catalog(&mut reader, root.get_ref()) {
        Some(catalog) if reader.mistakes.is_empty() => Ok(catalog),
        _ => Err(PlanFileErrors::new(reader.mistakes)),
    }
}

/// The file's tables, in the order in which people write them.
const ROOT_KEYS: [&str; 9] = [
    "default_plan",
    "features",
    "plans",
    "models",
    "credits",
    "metering",
    "schedule",
    "policy",
    "retention",
];

fn read_catalog(reader: &mut Reader, root: &DeTable<'_>) -> Option<Catalog> {
    let root = reader.root(root, &ROOT_KEYS);
    let default_plan = reader.optional_value(&root, "default_plan", &rules::PLAN_ID);
    let features = read_features(reader, &root);
    let drafts = read_plans(reader, &root);
    let models = read_models(reader, &root);
    let credit_drafts = read_credits(reader, &root, &models);
    let metering_window = read_metering_window(reader, &root);
    let schedule = read_schedule(reader, &root);
    let (policy, overheads) = read_policy(reader, &root);
    let retention = read_retention(reader, &root);

    check_meters(reader, &features);
    let credits = finish_credits(reader, credit_drafts, &features);
    check_plans(reader, &drafts, &features);
    for plan in default_plan.iter().chain(&overheads) {
        if !names_a_plan(&drafts, &plan.value) {
            reader.wrong(&plan.place, no_such_plan(&plan.value));
        }
    }
    let mut plans: Vec<Plan> = drafts.into_iter().filter_map(PlanDraft::finish).collect();
    plans.sort_by_key(|plan| plan.rank);
    let features =
        features.into_iter().filter_map(|(id, draft)| Some((id.clone(), draft.finish(id)?)));
    Some(Catalog {
        default_plan: default_plan.map(|found| found.value),
        features: features.collect(),
        plans,
        models: models.into_iter().filter_map(|(name, price)| Some((name, price?))).collect(),
        credits,
        metering_window: metering_window?,
        schedule: schedule?,
        policy: policy?,
        retention: retention?,
    })
}

/// A feature as far as it could be read.
#[derive(Default)]
struct FeatureDraft {
    name: Option<Found<String>>,
    unit: Option<Found<String>>,
    stripe_meter: Option<Found<String>>,
    count_unknown_models_as: Option<Found<String>>,
}

impl FeatureDraft {
    fn finish(self, id: FeatureId) -> Option<Feature> {
        Some(Feature {
            id,
            name: self.name?.value,
            unit: self.unit?.value,
            stripe_meter: self.stripe_meter.map(|meter| meter.value),
        })
    }
}

fn read_features(reader: &mut Reader, root: &Section<'_>) -> BTreeMap<FeatureId, FeatureDraft> {
    let mut features = BTreeMap::new();
    let Some(node) = reader.optional(root, "features") else {
        return features;
    };
    for (id, node) in reader.entries(&node, &rules::FEATURE_ID) {
        let known = ["name", "unit", "stripe_meter", "count_unknown_models_as"];
        let section = reader.section(&node, &known);
        let draft = section.map(|section| FeatureDraft {
            name: reader.required_value(&section, "name", &rules::NAME),
            unit: reader.required_value(&section, "unit", &rules::NAME),
            stripe_meter: reader.optional_value(&section, "stripe_meter", &rules::METER_NAME),
            count_unknown_models_as: reader.optional_value(
                &section,
                "count_unknown_models_as",
                &rules::MODEL_NAME,
            ),
        });
        features.insert(id, draft.unwrap_or_default());
    }
    features
}

/// A plan as far as it could be read.
struct PlanDraft {
    id: Option<Found<PlanId>>,
    name: Option<Found<String>>,
    rank: Option<Found<i64>>,
    price: Option<Price>,
    lookup_key: Option<Found<String>>,
    upgrade_to: Option<Found<PlanId>>,
    limits: Vec<(Found<FeatureId>, Option<Limit>)>,
    unlocks: Vec<Unlock>,
    on_outage: Option<OnOutage>,
    grandfather: bool,
}

impl PlanDraft {
    fn finish(self) -> Option<Plan> {
        let limit = |(id, limit): (Found<FeatureId>, Option<Limit>)| Some((id.value, limit?));
        Some(Plan {
            id: self.id?.value,
            name: self.name?.value,
            rank: self.rank?.value,
            price: self.price,
            upgrade_to: self.upgrade_to.map(|found| found.value),
            limits: self.limits.into_iter().filter_map(limit).collect(),
            unlocks: self.unlocks,
            on_outage: self.on_outage?,
            grandfather: self.grandfather,
        })
    }
}

fn read_plans(reader: &mut Reader, root: &Section<'_>) -> Vec<PlanDraft> {
    let node = reader.optional(root, "plans");
    let place = match &node {
        Some(node) => node.place.clone(),
        None => Place { line: root.place.line, key: "plans".to_owned() },
    };
    let Some(nodes) = node.map_or(Some(Vec::new()), |node| reader.list(&node)) else {
        return Vec::new();
    };
    if nodes.is_empty() {
        reader.wrong(&place, "must be at least one [[plans]] table");
    }
    nodes.into_iter().filter_map(|node| read_plan(reader, node)).collect()
}

const PLAN_KEYS: [&str; 10] = [
    "id",
    "name",
    "rank",
    "price",
    "upgrade_to",
    "limits",
    "unlocks",
    "on_outage",
    "outage_allowance",
    "grandfather",
];

fn read_plan(reader: &mut Reader, node: Node<'_>) -> Option<PlanDraft> {
    // People know a plan by its id, not by its place in the file.
    let node = match node.peek("id").and_then(rules::as_id) {
        Some(id) => {
            let key = format!("plans.{id}");
            node.renamed(key)
        }
        None => node,
    };
    let section = reader.section(&node, &PLAN_KEYS)?;
    let price = reader.optional(&section, "price");
    let (price, lookup_key) = price.map_or((None, None), |node| read_price(reader, &node));
    let grandfather = reader.optional_value(&section, "grandfather", &rules::YES_OR_NO);
    Some(PlanDraft {
        id: reader.required_value(&section, "id", &rules::PLAN_ID),
        name: reader.required_value(&section, "name", &rules::NAME),
        rank: reader.required_value(&section, "rank", &rules::WHOLE_NUMBER),
        price,
        lookup_key,
        upgrade_to: reader.optional_value(&section, "upgrade_to", &rules::PLAN_ID),
        limits: read_limits(reader, &section),
        unlocks: read_unlocks(reader, &section),
        on_outage: read_on_outage(reader, &section),
        grandfather: grandfather.is_some_and(|found| found.value),
    })
}

fn read_price(reader: &mut Reader, node: &Node<'_>) -> (Option<Price>, Option<Found<String>>) {
    let known = ["amount", "currency", "interval", "lookup_key"];
    let Some(section) = reader.section(node, &known) else {
        return (None, None);
    };
    let amount = reader.required_value(&section, "amount", &rules::AMOUNT);
    let currency = reader.required_value(&section, "currency", &rules::CURRENCY);
    let interval = reader.required_value(&section, "interval", &rules::INTERVAL);
    let lookup_key = reader.required_value(&section, "lookup_key", &rules::LOOKUP_KEY);
    let money = amount.zip(currency).and_then(|(a, c)| read_money(reader, &a, c.value));
    let price = || {
        Some(Price {
            amount: money?,
            interval: interval?.value,
            lookup_key: lookup_key.as_ref()?.value.clone(),
        })
    };
    (price(), lookup_key)
}

fn read_money(reader: &mut Reader, amount: &Found<String>, currency: Currency) -> Option<Money> {
    let money = Money::parse(&amount.value, currency);
    if money.is_err() {
        let code = currency.code();
        let wanted = match currency.decimals() {
            0 => {
                format!("must be a whole amount in quotes such as \"3000\": {code} has no decimals")
            }
            n => format!(
                "must be a decimal amount in quotes such as \"29.00\": {code} has {n} decimals"
            ),
        };
        reader.wrong(&amount.place, wanted);
    }
    money.ok()
}

fn read_unlocks(reader: &mut Reader, plan: &Section<'_>) -> Vec<Unlock> {
    let Some(node) = reader.optional(plan, "unlocks") else {
        return Vec::new();
    };
    let mut unlocks = Vec::new();
    for member in reader.list(&node).unwrap_or_default() {
        let Some(section) = reader.section(&member, &["title", "url"]) else {
            continue;
        };
        let title = reader.required_value(&section, "title", &rules::NAME);
        let url = reader.required_value(&section, "url", &rules::URL);
        if let (Some(title), Some(url)) = (title, url) {
            unlocks.push(Unlock { title: title.value, url: url.value });
        }
    }
    unlocks
}

fn read_on_outage(reader: &mut Reader, plan: &Section<'_>) -> Option<OnOutage> {
    const ALLOWANCE: &str = "outage_allowance";
    let word = match reader.optional(plan, "on_outage") {
        Some(node) => reader.value(&node, &rules::ON_OUTAGE).map(|found| found.value),
        None => Some(OutageWord::Deny),
    };
    match word {
        Some(OutageWord::Allow) => {
            let units = reader.required_value(plan, ALLOWANCE, &rules::UNITS)?.value;
            Some(OnOutage::Allow { units })
        }
        Some(OutageWord::Deny) => {
            reader.left_out(plan, ALLOWANCE, "unless on_outage is \"allow\"");
            Some(OnOutage::Deny)
        }
        None => {
            reader.optional_value(plan, ALLOWANCE, &rules::UNITS);
            None
        }
    }
}

/// A table of rates for one model.
pub(super) fn model_section<'a>(
    reader: &mut Reader,
    model: &str,
    node: &Node<'a>,
    known: &[&str],
) -> Option<Section<'a>> {
    if let Some(inner) = node.first_table().filter(|key| !known.contains(key)) {
        // TOML took the dot in [models.gpt-4.1] for a table within a table.
        reader
            .wrong(&node.place, format!("needs quotes if its name has a dot: \"{model}.{inner}\""));
        return None;
    }
    reader.section(node, known)
}

/// Reads rates for input, output and cached input tokens; cached input costs as input unless it
/// has a rate of its own.
pub(super) fn read_rates(
    reader: &mut Reader,
    section: &Section<'_>,
    keys: [&str; 3],
) -> Option<[i64; 3]> {
    let input = reader.required_value(section, keys[0], &rules::RATE);
    let output = reader.required_value(section, keys[1], &rules::RATE);
    let cached_input = reader.optional_value(section, keys[2], &rules::RATE);
    let (input, output) = (input?.value, output?.value);
    Some([input, output, cached_input.map_or(input, |found| found.value)])
}

/// A model whose rates could not be read is still known by name.
type CreditDrafts = BTreeMap<FeatureId, BTreeMap<String, Option<CreditRate>>>;

fn read_credits(
    reader: &mut Reader,
    root: &Section<'_>,
    models: &BTreeMap<String, Option<ModelPrices>>,
) -> CreditDrafts {
    let mut credits = CreditDrafts::new();
    let Some(node) = reader.optional(root, "credits") else {
        return credits;
    };
    for (feature, node) in reader.entries(&node, &rules::FEATURE_ID) {
        let rates = credits.entry(feature).or_default();
        for (model, node) in reader.entries(&node, &rules::MODEL_NAME) {
            if !models.contains_key(&model) {
                reader.wrong(&node.place, "names a model that has no [models] table");
            }
            let rate = read_credit_rate(reader, &model, &node);
            rates.insert(model, rate);
        }
    }
    credits
}

/// Gives each table the rate that its feature names for models the table does not know.
fn finish_credits(
    reader: &mut Reader,
    drafts: CreditDrafts,
    features: &BTreeMap<FeatureId, FeatureDraft>,
) -> BTreeMap<FeatureId, CreditTable> {
    let mut stand_ins = BTreeMap::new();
    for (id, feature) in features {
        let Some(model) = &feature.count_unknown_models_as else { continue };
        match drafts.get(id).and_then(|rates| rates.get(&model.value)) {
            Some(rate) => _ = stand_ins.insert(id, *rate),
            None => {
                let name = &model.value;
                let wanted = format!("must be a model of [credits.{id}]; there is no \"{name}\"");
                reader.wrong(&model.place, wanted);
            }
        }
    }
    let finish = |(id, rates): (FeatureId, BTreeMap<String, Option<CreditRate>>)| {
        let unknown_models = stand_ins.get(&id).copied().flatten();
        let rates = rates.into_iter().filter_map(|(model, rate)| Some((model, rate?))).collect();
        (id, CreditTable { rates, unknown_models })
    };
    drafts.into_iter().map(finish).collect()
}

fn read_credit_rate(reader: &mut Reader, model: &str, node: &Node<'_>) -> Option<CreditRate> {
    let keys = ["per_1k_input", "per_1k_output", "per_1k_cached_input"];
    let section = model_section(reader, model, node, &keys)?;
    let [input, output, cached_input] = read_rates(reader, &section, keys)?;
    Some(CreditRate {
        input_nanocredits_per_token: input,
        output_nanocredits_per_token: output,
        cached_input_nanocredits_per_token: cached_input,
    })
}

fn read_metering_window(reader: &mut Reader, root: &Section<'_>) -> Option<Duration> {
    const DEFAULT: Duration = Duration::from_secs(5 * 60);
    let Some(node) = reader.optional(root, "metering") else {
        return Some(DEFAULT);
    };
    let section = reader.section(&node, &["window"])?;
    let window = reader.optional_value(&section, "window", &rules::METERING_WINDOW);
    Some(window.map_or(DEFAULT, |found| found.value))
}

fn read_schedule(reader: &mut Reader, root: &Section<'_>) -> Option<Schedule> {
    let mut schedule = Schedule::default();
    let Some(node) = reader.optional(root, "schedule") else {
        return Some(schedule);
    };
    let section = reader.section(&node, &["notices", "meter_events", "reconcile"])?;
    for (key, expression) in [
        ("notices", &mut schedule.notices),
        ("meter_events", &mut schedule.meter_events),
        ("reconcile", &mut schedule.reconcile),
    ] {
        if let Some(cron) = reader.optional_value(&section, key, &rules::CRON) {
            *expression = cron.value;
        }
    }
    Some(schedule)
}

/// The policy, and the plans it names, which are checked once all plans are known.
fn read_policy(reader: &mut Reader, root: &Section<'_>) -> (Option<Policy>, Vec<Found<PlanId>>) {
    let mut policy = Policy::default();
    let mut named = Vec::new();
    let Some(node) = reader.optional(root, "policy") else {
        return (Some(policy), named);
    };
    let known = ["post_upgrade_delay", "past_due_grace", "pause_collection", "cost_overhead"];
    let Some(section) = reader.section(&node, &known) else {
        return (None, named);
    };
    for (key, duration) in [
        ("post_upgrade_delay", &mut policy.post_upgrade_delay),
        ("past_due_grace", &mut policy.past_due_grace),
    ] {
        if let Some(delay) = reader.optional_value(&section, key, &rules::DELAY) {
            *duration = delay.value;
        }
    }
    if let Some(word) =
        reader.optional_value(&section, "pause_collection", &rules::PAUSE_COLLECTION)
    {
        policy.pause_collection = word.value;
    }
    if let Some(node) = reader.optional(&section, "cost_overhead") {
        for (plan, node) in reader.entries(&node, &rules::PLAN_ID) {
            let amount = reader.value(&node, &rules::AMOUNT);
            if let Some(money) = amount.and_then(|a| read_money(reader, &a, Currency::USD)) {
                policy.cost_overhead.insert(plan.clone(), money);
            }
            named.push(Found { value: plan, place: node.place });
        }
    }
    (Some(policy), named)
}

fn read_retention(reader: &mut Reader, root: &Section<'_>) -> Option<Retention> {
    let Some(node) = reader.optional(root, "retention") else {
        return Some(Retention::default());
    };
    let section = reader.section(&node, &["usage_events"])?;
    let usage_events = reader.optional_value(&section, "usage_events", &rules::RETENTION);
    Some(Retention { usage_events: usage_events.map(|found| found.value) })
}

/// Two features on one meter would be billed as one.
fn check_meters(reader: &mut Reader, features: &BTreeMap<FeatureId, FeatureDraft>) {
    let meters = features.values().filter_map(|feature| feature.stripe_meter.as_ref());
    check_unique(reader, meters);
}

fn check_plans(
    reader: &mut Reader,
    plans: &[PlanDraft],
    features: &BTreeMap<FeatureId, FeatureDraft>,
) {
    check_unique(reader, plans.iter().filter_map(|plan| plan.id.as_ref()));
    check_unique(reader, plans.iter().filter_map(|plan| plan.rank.as_ref()));
    check_unique(reader, plans.iter().filter_map(|plan| plan.lookup_key.as_ref()));
    for plan in plans {
        check_upgrade(reader, plan, plans);
        for (feature, _) in &plan.limits {
            if !features.contains_key(&feature.value) {
                let wanted =
                    format!("must name a feature; there is no [features.{}]", feature.value);
                reader.wrong(&feature.place, wanted);
            }
        }
    }
}

fn check_upgrade(reader: &mut Reader, plan: &PlanDraft, plans: &[PlanDraft]) {
    let Some(target) = &plan.upgrade_to else {
        return;
    };
    if !names_a_plan(plans, &target.value) {
        reader.wrong(&target.place, no_such_plan(&target.value));
        return;
    }
    let is_target =
        |other: &&PlanDraft| other.id.as_ref().is_some_and(|id| id.value == target.value);
    let target_rank = plans.iter().find(is_target).and_then(|other| other.rank.as_ref());
    if let (Some(from), Some(to)) = (&plan.rank, target_rank)
        && to.value <= from.value
    {
        let wanted = format!(
            "must be a plan of higher rank; \"{}\" has rank {}, this one {}",
            target.value, to.value, from.value
        );
        reader.wrong(&target.place, wanted);
    }
}

fn names_a_plan(plans: &[PlanDraft], id: &PlanId) -> bool {
    plans.iter().any(|plan| plan.id.as_ref().is_some_and(|found| found.value == *id))
}

fn no_such_plan(id: &PlanId) -> String {
    format!("must be the id of a plan; there is no \"{id}\"")
}

/// Reports every value that stands on an earlier line too.
fn check_unique<'a, T: Ord + 'a>(reader: &mut Reader, found: impl Iterator<Item = &'a Found<T>>) {
    let mut sorted: Vec<_> = found.collect();
    sorted.sort_by_key(|found| found.place.line);
    let mut first_lines = BTreeMap::new();
    for found in sorted {
        let first = *first_lines.entry(&found.value).or_insert(&found.place);
        if !std::ptr::eq(first, &found.place) {
            reader.wrong(&found.place, format!("must be unique; line {} has the same", first.line));
        }
    }
}
