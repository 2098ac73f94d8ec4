use super::found::{Destination, Endpoint, Found, Meter, Portal, Price, Product};
use super::*;

const URL: &str = "https://billing.example.com/webhooks/stripe";
const VERSION: &str = "2026-09-30.endive";

/// The example's plans on the account's own terms, with whatever else the file says.
fn wanted_by(plans: &str) -> Wanted {
    let catalog = Catalog::parse(plans).unwrap();
    let (url, events) = (Ok(URL.to_owned()), vec!["invoice.paid", "customer.updated"]);
    Wanted::of(&catalog, Some(false), url, VERSION, events, vec!["v1.thin"])
}

fn wanted() -> Wanted {
    wanted_by(include_str!("../../../plans.example.toml"))
}

/// A file of `count` plans that cost this and that.
fn many(count: usize, amount: &str, currency: &str) -> String {
    let plan = |n: usize| {
        format!(
            "[[plans]]\nid = \"p{n}\"\nname = \"P{n}\"\nrank = {n}\nprice = {{ amount = \
             \"{amount}\", currency = \"{currency}\", interval = \"month\", lookup_key = \"p{n}\" }}\n"
        )
    };
    (1..=count).map(plan).collect()
}

/// What a push of these leaves: everything as wanted.
fn account(wanted: &Wanted) -> Found {
    let price = |offer: &Offer| Price {
        id: format!("price_{}", offer.plan_id),
        product: offer.own_product(),
        lookup_key: Some(offer.lookup_key.clone()),
        plan_mark: Some(offer.plan_id.clone()),
        active: true,
        livemode: false,
        amount_minor: Some(offer.amount.minor),
        currency: offer.amount.currency.code().to_owned(),
        interval: Some(offer.interval.label().to_owned()),
        interval_count: 1,
        metered: false,
        plain: true,
        replaces: None,
    };
    let product = |offer: &Offer| Product {
        id: offer.own_product(),
        name: offer.name.clone(),
        active: true,
        default_price: None,
    };
    let prices: Vec<Price> = wanted.offers.iter().map(price).collect();
    let owned = |events: &[&str]| events.iter().map(|event| (*event).to_owned()).collect();
    Found {
        meters: Ok(wanted.meters.iter().map(meter).collect()),
        products: Ok(wanted.offers.iter().map(product).collect()),
        portals: Ok(vec![Portal {
            id: "bpc_1".to_owned(),
            cancels_at_period_end: true,
            payment_methods: true,
            invoices: true,
            changes: !prices.is_empty(),
            prices: prices.iter().map(|p| (p.product.clone(), p.id.clone())).collect(),
        }]),
        prices: Ok(prices),
        endpoints: Ok(vec![endpoint("we_1", Some(VERSION), owned(&wanted.events))]),
        destinations: Ok(vec![Destination {
            id: "ed_1".to_owned(),
            url: URL.to_owned(),
            events: owned(&wanted.thin_events),
            enabled: true,
        }]),
    }
}

fn meter(wanted: &super::Meter) -> Meter {
    Meter {
        id: "mtr_1".to_owned(),
        event_name: wanted.event_name.clone(),
        display_name: wanted.display_name.clone(),
        active: true,
        formula: "sum".to_owned(),
        customer_key: "stripe_customer_id".to_owned(),
        value_key: "value".to_owned(),
        event_time_window: None,
    }
}

fn endpoint(id: &str, version: Option<&str>, events: Vec<String>) -> Endpoint {
    let api_version = version.map(str::to_owned);
    Endpoint { id: id.to_owned(), url: URL.to_owned(), api_version, events, enabled: true }
}

fn empty() -> Found {
    Found {
        meters: Ok(Vec::new()),
        prices: Ok(Vec::new()),
        products: Ok(Vec::new()),
        portals: Ok(Vec::new()),
        endpoints: Ok(Vec::new()),
        destinations: Ok(Vec::new()),
    }
}

/// The one step that is not as it should be.
#[track_caller]
fn only_amiss(steps: &[Step]) -> &Step {
    let mut amiss = steps.iter().filter(|step| !matches!(step.state, State::Right { .. }));
    let first = amiss.next().expect("something is amiss");
    assert!(amiss.next().is_none(), "more than one is amiss: {steps:#?}");
    first
}

/// The step of the price `pro_monthly` after this change of the account.
fn pro(change: impl FnOnce(&mut Vec<Price>, &mut Vec<Product>)) -> Step {
    let wanted = wanted();
    let mut found = account(&wanted);
    change(found.prices.as_mut().unwrap(), found.products.as_mut().unwrap());
    let steps = plan(&wanted, &found);
    steps.into_iter().find(|step| step.name == "pro_monthly").unwrap()
}

fn differences(step: &Step) -> Vec<(&str, &str, &str)> {
    let State::Different { differences, .. } = &step.state else { panic!("{step:?}") };
    differences.iter().map(|d| (&*d.what, &*d.found, &*d.wanted)).collect()
}

fn refusal(step: &Step) -> &str {
    let State::Refused { reason, .. } = &step.state else { panic!("{step:?}") };
    assert!(step.writes.is_empty(), "{step:?}");
    reason
}

#[test]
fn an_empty_account_lacks_everything_and_a_full_one_nothing() {
    let wanted = wanted();
    let steps = plan(&wanted, &empty());
    assert_eq!(steps.len(), 10);
    assert!(steps.iter().all(|step| step.state == State::Missing && step.writes.len() == 1));
    let steps = plan(&wanted, &account(&wanted));
    assert_eq!(steps.len(), 10);
    for step in steps {
        assert!(matches!(step.state, State::Right { .. }) && step.writes.is_empty(), "{step:?}");
    }
}

#[test]
fn a_feature_that_stays_local_needs_no_meter() {
    let plans = include_str!("../../../plans.example.toml").replace(
        "[features.ai_runs]",
        "[features.local]\nname = \"Local\"\nunit = \"one\"\n[features.ai_runs]",
    );
    let meters = wanted_by(&plans).meters;
    let names: Vec<&str> = meters.iter().map(|meter| &*meter.event_name).collect();
    assert_eq!(names, ["ai_runs"]);
}

#[test]
fn a_meter_is_woken_and_renamed_but_never_bent() {
    let wanted = wanted();
    let with = |change: fn(&mut Meter)| {
        let mut found = account(&wanted);
        change(&mut found.meters.as_mut().unwrap()[0]);
        only_amiss(&plan(&wanted, &found)).clone()
    };
    let step = with(|meter| (meter.active, meter.display_name) = (false, "Runs".to_owned()));
    assert_eq!(
        differences(&step),
        [("status", "deactivated", "active"), ("name", "Runs", "AI runs")]
    );
    assert_eq!(step.writes.len(), 2);
    for (change, reason) in [
        ((|meter| meter.formula = "count".to_owned()) as fn(&mut Meter), "the formula of mtr_1"),
        (|meter| meter.formula = "last".to_owned(), "the formula of mtr_1 is last, not sum"),
        (|meter| meter.customer_key = "cus".to_owned(), "the customer's key in mtr_1 is cus"),
        (|meter| meter.value_key = "n".to_owned(), "the value's key in mtr_1 is n, not value"),
        (|meter| meter.event_time_window = Some("day".to_owned()), "only the last event"),
    ] {
        let step = with(change);
        assert!(refusal(&step).contains(reason), "{step:?}");
    }
}

#[test]
fn of_two_meters_of_one_name_the_active_one_counts() {
    let wanted = wanted();
    let mut found = account(&wanted);
    let old = Meter { id: "mtr_0".to_owned(), active: false, ..meter(&wanted.meters[0]) };
    found.meters.as_mut().unwrap().push(old);
    assert!(plan(&wanted, &found).iter().all(|step| matches!(step.state, State::Right { .. })));
}

#[test]
fn a_price_differs_in_what_can_never_change_and_is_replaced() {
    for (change, expected) in [
        ((|price| price.amount_minor = Some(8900)) as fn(&mut Price), ("amount", "$89", "$99")),
        (|price| price.amount_minor = None, ("amount", "not one", "$99")),
        (|price| price.interval = None, ("interval", "paid once", "month")),
        (|price| price.interval = Some("year".to_owned()), ("interval", "year", "month")),
        (|price| price.interval_count = 3, ("interval", "3 months", "month")),
        (|price| price.metered = true, ("usage", "metered", "licensed")),
        (|price| price.plain = false, ("scheme", "tiers or packages", "per unit")),
    ] {
        let step = pro(|prices, _| change(&mut prices[1]));
        assert_eq!(differences(&step), [expected]);
        let [Write::Create(Creation::Price { replaces, .. }), Write::Change(archive)] =
            &step.writes[..]
        else {
            panic!("{step:?}");
        };
        assert_eq!(replaces.as_deref(), Some("price_pro"));
        assert_eq!(*archive, Change::ArchivePrice { id: "price_pro".to_owned() });
    }
    let step = pro(|prices, _| prices[1].currency = "eur".to_owned());
    assert_eq!(differences(&step), [("amount", "€99", "$99"), ("currency", "eur", "usd")]);
}

#[test]
fn a_price_that_somebody_else_made_is_marked_before_its_key_goes_to_another() {
    let step = pro(|prices, _| (prices[1].amount_minor, prices[1].plan_mark) = (Some(1), None));
    let mark = Change::MarkPrice { id: "price_pro".to_owned(), plan_id: "pro".to_owned() };
    assert_eq!(step.writes[0], Write::Change(mark));
    assert!(matches!(step.writes[1], Write::Create(Creation::Price { .. })));
    assert_eq!(step.writes.len(), 3);
}

#[test]
fn a_price_that_is_not_marked_as_its_plans_is_marked_and_the_one_it_replaced_too() {
    let mark = |id: &str| {
        let (id, plan_id) = (id.to_owned(), "pro".to_owned());
        Write::Change(Change::MarkPrice { id, plan_id })
    };
    let step = pro(|prices, _| prices[1].plan_mark = None);
    assert_eq!(differences(&step), [("plan mark", "none", "pro")]);
    assert_eq!(step.writes, [mark("price_pro")]);

    let replaced = |plan_mark: Option<&str>, lookup_key: Option<&str>| {
        let text = |text: &str| text.to_owned();
        pro(|prices, _| {
            prices[1].replaces = Some("price_old".to_owned());
            prices.push(Price {
                id: "price_old".to_owned(),
                lookup_key: lookup_key.map(text),
                plan_mark: plan_mark.map(text),
                active: false,
                ..prices[1].clone()
            });
        })
    };
    let step = replaced(Some("professional"), None);
    assert_eq!(differences(&step), [("plan mark of price_old", "professional", "pro")]);
    assert_eq!(step.writes, [mark("price_old")]);
    for (plan_mark, lookup_key) in
        [(Some("pro"), None), (Some("team"), None), (None, Some("team_monthly"))]
    {
        let step = replaced(plan_mark, lookup_key);
        assert!(matches!(step.state, State::Right { .. }), "{step:?}");
    }
}

#[test]
fn a_price_that_stayed_open_after_its_replacement_is_closed_its_default_first() {
    let old = || Price {
        id: "price_old".to_owned(),
        lookup_key: None,
        ..account(&wanted()).prices.unwrap()[1].clone()
    };
    let leave_open = |prices: &mut Vec<Price>, products: &mut Vec<Product>| {
        prices[1].replaces = Some("price_old".to_owned());
        prices.push(old());
        products[1].default_price = Some("price_old".to_owned());
    };
    let step = pro(leave_open);
    assert_eq!(differences(&step), [("price_old", "active", "archived")]);
    let default = Change::SetDefaultPrice {
        product: "tollgate_pro".to_owned(),
        price: PriceRef::Id("price_pro".to_owned()),
    };
    let archive = Change::ArchivePrice { id: "price_old".to_owned() };
    assert_eq!(step.writes, [Write::Change(default), Write::Change(archive)]);
    let closed = pro(|prices, products| {
        leave_open(prices, products);
        prices.last_mut().unwrap().active = false;
    });
    assert!(matches!(closed.state, State::Right { .. }));
    let sold_again_under_another_key = pro(|prices, products| {
        leave_open(prices, products);
        prices.last_mut().unwrap().lookup_key = Some("pro_classic".to_owned());
    });
    assert!(matches!(sold_again_under_another_key.state, State::Right { .. }));
    let changed_once_more = pro(|prices, products| {
        leave_open(prices, products);
        prices[1].amount_minor = Some(1);
    });
    assert_eq!(changed_once_more.writes.len(), 4, "both are closed: {changed_once_more:?}");
}

#[test]
fn a_price_of_the_other_mode_is_refused() {
    let step = pro(|prices, _| prices[1].livemode = true);
    assert_eq!(refusal(&step), "price_pro is of live mode");
}

#[test]
fn amounts_follow_their_currency() {
    let sold = |amount: &str, currency: &str| {
        let wanted = wanted_by(&many(1, amount, currency));
        let steps = plan(&wanted, &empty());
        let price = steps.into_iter().find(|step| step.kind == Kind::Price)?;
        Some((price.detail.clone(), price.state.clone(), wanted.offers[0].amount.minor))
    };
    assert_eq!(sold("3000", "jpy").unwrap(), ("¥3000/month".to_owned(), State::Missing, 3000));
    assert_eq!(sold("5.120", "kwd").unwrap().2, 5120);
    assert_eq!(sold("5", "ugx").unwrap(), ("5 UGX/month".to_owned(), State::Missing, 500));
    for (amount, currency, step) in
        [("5.124", "kwd", "0.010 KWD"), ("80.45", "isk", "1 ISK"), ("0.50", "ugx", "1 UGX")]
    {
        let State::Refused { reason, .. } = sold(amount, currency).unwrap().1 else {
            panic!("{amount} {currency} is not refused")
        };
        assert!(reason.contains(&format!("is no multiple of {step}")), "{reason}");
    }
    assert_eq!(sold("0.00", "usd"), None, "nothing is to be sold for nothing");
}

#[test]
fn somebody_elses_product_keeps_its_name_but_not_its_archive() {
    let wanted = wanted();
    let mut found = account(&wanted);
    found.prices.as_mut().unwrap()[1].product = "prod_theirs".to_owned();
    let product = &mut found.products.as_mut().unwrap()[1];
    (product.id, product.name) = ("prod_theirs".to_owned(), "Theirs".to_owned());
    found.portals.as_mut().unwrap()[0].prices[1].0 = "prod_theirs".to_owned();
    assert!(plan(&wanted, &found).iter().all(|step| matches!(step.state, State::Right { .. })));
    found.products.as_mut().unwrap()[1].active = false;
    let steps = plan(&wanted, &found);
    let update = Change::UpdateProduct { id: "prod_theirs".to_owned(), name: None };
    assert_eq!(only_amiss(&steps).writes, [Write::Change(update)]);
}

#[test]
fn the_portal_offers_what_it_can_and_says_what_it_cannot() {
    let portal = |wanted: &Wanted, found: &Found| {
        plan(wanted, found).into_iter().find(|step| step.kind == Kind::Portal).unwrap()
    };
    let ten = wanted_by(&many(10, "1.00", "usd"));
    assert_eq!(portal(&ten, &empty()).note, None);
    let eleven = wanted_by(&many(11, "1.00", "usd"));
    let step = portal(&eleven, &empty());
    assert!(step.note.as_ref().is_some_and(|note| note.contains("these are 11")), "{step:?}");
    let none = PortalTerms { prices: Vec::new() };
    assert_eq!(step.writes, [Write::Create(Creation::Portal(none))]);

    let wanted = wanted();
    let mut found = account(&wanted);
    found.prices.as_mut().unwrap()[1].product = "tollgate_starter".to_owned();
    let step = portal(&wanted, &found);
    assert!(step.note.is_some_and(|note| note.contains("in tollgate_starter")));
    let mut found = account(&wanted);
    found.prices.as_mut().unwrap()[1].amount_minor = Some(1);
    let step = portal(&wanted, &found);
    assert_eq!(differences(&step), [("prices", "price_pro", "new pro_monthly")]);
}

#[test]
fn an_endpoint_gets_what_it_lacks_and_keeps_what_it_has() {
    let wanted = wanted();
    let with = |endpoints: Vec<Endpoint>| {
        let found = Found { endpoints: Ok(endpoints), ..account(&wanted) };
        plan(&wanted, &found).into_iter().find(|step| step.kind == Kind::Endpoint).unwrap()
    };
    let named = |events: &[&str]| events.iter().map(|event| (*event).to_owned()).collect();
    let step =
        with(vec![endpoint("we_1", Some(VERSION), named(&["charge.refunded", "invoice.paid"]))]);
    assert_eq!(differences(&step), [("events", "missing", "customer.updated")]);
    let all = named(&["charge.refunded", "invoice.paid", "customer.updated"]);
    let update = Change::UpdateEndpoint { id: "we_1".to_owned(), events: all };
    assert_eq!(step.writes, [Write::Change(update)]);
    assert!(matches!(
        with(vec![endpoint("we_1", Some(VERSION), named(&["*"]))]).state,
        State::Right { .. }
    ));

    let old = || endpoint("we_0", Some("2024-06-20"), named(&["*"]));
    let step = with(vec![old(), endpoint("we_9", None, named(&["*"]))]);
    assert_eq!(step.state, State::Missing);
    let note = step.note.unwrap();
    assert!(note.contains("we_0 (2024-06-20) and we_9 (the account's version)"), "{note}");
    let step = with(vec![old(), endpoint("we_1", Some(VERSION), named(&["*"]))]);
    assert!(matches!(&step.state, State::Right { id } if id == "we_1") && step.note.is_some());
    let off = Endpoint { enabled: false, ..old() };
    assert_eq!(with(vec![off, endpoint("we_1", Some(VERSION), named(&["*"]))]).note, None);
    let elsewhere = Endpoint { url: "https://staging.example.com".to_owned(), ..old() };
    assert_eq!(with(vec![elsewhere]).note, None, "another daemon's");
}

#[test]
fn without_an_address_nothing_is_written() {
    let wanted = Wanted { webhook_url: Err("no address".to_owned()), ..wanted() };
    let steps = plan(&wanted, &empty());
    assert!(is_refused(&steps));
    assert!(steps.iter().all(|step| step.kind != Kind::Destination));
}

#[test]
fn what_cannot_be_seen_is_refused_once_and_by_its_name() {
    let wanted = wanted();
    for (kind, blind) in [
        (Kind::Meter, (|found, unseen| found.meters = Err(unseen)) as fn(&mut Found, Unseen)),
        (Kind::Price, |found, unseen| found.prices = Err(unseen)),
        (Kind::Product, |found, unseen| found.products = Err(unseen)),
        (Kind::Portal, |found, unseen| found.portals = Err(unseen)),
        (Kind::Endpoint, |found, unseen| found.endpoints = Err(unseen)),
        (Kind::Destination, |found, unseen| found.destinations = Err(unseen)),
    ] {
        let mut found = account(&wanted);
        blind(&mut found, Unseen { kind, reason: "403".to_owned(), forbidden: true });
        let steps = plan(&wanted, &found);
        let step = only_amiss(&steps);
        assert!(step.kind == kind && is_refused(&steps), "{step:?}");
        assert!(matches!(step.state, State::Unseen { forbidden: true, .. }), "{step:?}");
    }
}

#[test]
fn each_enabled_sender_needs_a_secret() {
    let wanted = wanted();
    let mut found = account(&wanted);
    assert_eq!(senders(&wanted, &found), ["we_1", "ed_1"]);
    let old = endpoint("we_0", None, Vec::new());
    let off = Endpoint { id: "we_2".to_owned(), enabled: false, ..old.clone() };
    let elsewhere = Endpoint { url: "https://staging.example.com".to_owned(), ..old.clone() };
    found.endpoints.as_mut().unwrap().extend([old, off, elsewhere]);
    let all = senders(&wanted, &found);
    assert_eq!(all, ["we_1", "we_0", "ed_1"]);
    assert_eq!(secret_missing(&all, 3), None);
    for (secrets, held) in [(2, "has 2 secrets"), (1, "has one secret"), (0, "is not set")] {
        let said = secret_missing(&all, secrets).unwrap();
        assert!(said.contains(held) && said.contains("we_1 and we_0 and ed_1"), "{said}");
    }
    assert_eq!(secret_missing(&[], 0), None);
}
