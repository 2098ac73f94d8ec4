//! `GET /v1/customers/{id}/usage`: what a customer has used, by day or hour and by entity.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::Daemon;
use super::body::{CustomerPath, Fields, Pairs};
use super::error::{ApiError, ErrorBody, unknown_customer};
use crate::clock::Timestamp;
use crate::domain::ids::{CustomerId, EntityId, FeatureId};
use crate::domain::period::BillingPeriod;
use crate::store::history::{Span, Used, Which};

/// The most bins of one answer.
const MAX_BINS: i64 = 1000;
/// The most pairs of bin and entity that one answer is made from.
const MAX_ROWS: usize = 100_000;

/// How long a bin is; each begins on the hour or the day (00:00) in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bin {
    Hour,
    Day,
}

impl Bin {
    fn ms(self) -> i64 {
        match self {
            Self::Hour => 3_600_000,
            Self::Day => 86_400_000,
        }
    }
}

/// Usage of one feature in `[from, to)`.
#[derive(Serialize, ToSchema)]
pub struct UsageBody {
    customer_id: CustomerId,
    feature_id: FeatureId,
    from: Timestamp,
    to: Timestamp,
    bin: Bin,
    /// Units counted in the whole span.
    total: i64,
    /// How many runs they were counted in.
    events: i64,
    /// All bins of the span in order, those without usage too.
    bins: Vec<BinBody>,
    /// Who used it, the one with the most units first.
    entities: Vec<EntityBody>,
}

/// What was used in one bin. The first and the last are cut where the span is.
#[derive(Serialize, ToSchema)]
pub struct BinBody {
    start: Timestamp,
    end: Timestamp,
    units: i64,
    events: i64,
    /// By whom, only with `group_by=entity`.
    #[serde(skip_serializing_if = "Option::is_none")]
    entities: Option<Vec<EntityBody>>,
}

/// What one entity used.
#[derive(Clone, Serialize, ToSchema)]
pub struct EntityBody {
    /// Null: runs that named no entity.
    #[schema(required)]
    entity_id: Option<EntityId>,
    units: i64,
    events: i64,
}

/// By what each bin is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ToSchema)]
#[schema(rename_all = "snake_case")]
enum GroupBy {
    Entity,
}

/// What was used when and by whom; by day in the current billing period, unless asked otherwise.
///
/// Without `from` and `to` it is what is counted in the period, as the balance says: a run that was held
/// before a period ended and committed soon after belongs to that one, and is shown in its last bin.
/// With either it is what was recorded in that time, whichever period it was counted in.
///
/// Runs that the retention setting has removed are gone from here; the totals of their periods stay.
#[utoipa::path(get, path = "/v1/customers/{id}/usage", tag = "customers", operation_id = "get_usage",
    params(
        ("id" = CustomerId, Path, description = "The product's own id of the customer"),
        ("feature_id" = FeatureId, Query),
        ("from" = Option<Timestamp>, Query, description = "The first instant; the current period's, if left out"),
        ("to" = Option<Timestamp>, Query,
            description = "The first instant that is not included; the current period's end, if left out"),
        ("bin" = inline(Option<Bin>), Query, description = "`day`, if left out; a span has at most 1,000 bins"),
        ("group_by" = inline(Option<GroupBy>), Query, description = "`entity` also tells by whom in each bin"),
    ),
    responses(
        (status = 200, description = "The usage", body = UsageBody),
        (status = 404, description = "No such customer, or no such feature", body = ErrorBody),
    ))]
pub async fn get(
    State(daemon): State<Daemon>,
    CustomerPath(id): CustomerPath,
    query: Pairs,
) -> Result<Json<UsageBody>, ApiError> {
    let app = &daemon.app;
    let mut fields = Fields::query(query)?;
    let feature_id: FeatureId = fields.required_id("feature_id")?;
    let bin = fields.word("bin", &[("day", Bin::Day), ("hour", Bin::Hour)])?.unwrap_or(Bin::Day);
    let group_by = fields.word("group_by", &[("entity", GroupBy::Entity)])?;
    let (from, to) = (fields.time("from")?, fields.time("to")?);
    fields.finish()?;
    let customer = app.store.customer(&id).await?.ok_or_else(unknown_customer)?;
    if !app.plans.active().1.features.contains_key(&feature_id) {
        return Err(ApiError::unknown_feature());
    }
    let period = customer.tier.cycle.period_at(app.clock.now());
    let which = match (from, to) {
        (None, None) => Which::CountedIn { series: customer.tier.cycle.series },
        _ => Which::Recorded,
    };
    let span = span(from, to, period, bin)?;
    let limit = i64::try_from(MAX_ROWS).expect("a small number") + 1;
    let used = app.store.history(&id, &feature_id, which, span, limit).await;
    let used = used.map_err(ApiError::of_long_read)?;
    if used.len() > MAX_ROWS {
        return Err(too_much("to", "spans too many bins and entities at once"));
    }
    Ok(Json(UsageBody {
        customer_id: id,
        feature_id,
        from: span.from,
        to: span.to,
        bin,
        total: used.iter().map(|used| used.units).sum(),
        events: used.iter().map(|used| used.events).sum(),
        bins: bins(&used, span, group_by == Some(GroupBy::Entity)),
        entities: entities(&used),
    }))
}

fn span(
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    period: BillingPeriod,
    bin: Bin,
) -> Result<Span, ApiError> {
    let (from, to) = (from.unwrap_or(period.start), to.unwrap_or(period.end));
    if to <= from {
        return Err(ApiError::invalid("to", "must be later than from"));
    }
    let span = Span { from, to, bin_ms: bin.ms() };
    let (first, last) = ends(span);
    if last - first >= MAX_BINS {
        return Err(too_much("to", &format!("is more than {MAX_BINS} bins after from")));
    }
    Ok(span)
}

fn too_much(param: &str, what: &str) -> ApiError {
    let message = format!("{param} {what}: ask for a shorter span, or for days instead of hours");
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_value", message).param(param)
}

/// The first and the last bin of a span, counted from the epoch.
fn ends(span: Span) -> (i64, i64) {
    (span.from.ms().div_euclid(span.bin_ms), (span.to.ms() - 1).div_euclid(span.bin_ms))
}

/// All bins of the span; `used` is in their order.
fn bins(used: &[Used], span: Span, by_entity: bool) -> Vec<BinBody> {
    let (first, last) = ends(span);
    let in_bin = |bin| {
        let at = used.partition_point(|used| used.bin < bin);
        &used[at..at + used[at..].partition_point(|used| used.bin == bin)]
    };
    (first..=last)
        .map(|bin| {
            let used = in_bin(bin);
            let start = Timestamp::from_ms(bin * span.bin_ms);
            let end = Timestamp::from_ms((bin + 1) * span.bin_ms);
            BinBody {
                start: start.max(span.from),
                end: end.min(span.to),
                units: used.iter().map(|used| used.units).sum(),
                events: used.iter().map(|used| used.events).sum(),
                entities: by_entity.then(|| entities(used)),
            }
        })
        .collect()
}

/// Sums by entity, the largest first; of equal ones in order of the id.
fn entities(used: &[Used]) -> Vec<EntityBody> {
    let mut sums: BTreeMap<&Option<EntityId>, (i64, i64)> = BTreeMap::new();
    for used in used {
        let (units, events) = sums.entry(&used.entity_id).or_default();
        *units += used.units;
        *events += used.events;
    }
    let mut sums: Vec<_> = sums
        .into_iter()
        .map(|(id, (units, events))| EntityBody { entity_id: id.clone(), units, events })
        .collect();
    sums.sort_by_key(|entity| std::cmp::Reverse(entity.units));
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn used(bin: i64, entity: Option<&str>, units: i64) -> Used {
        let entity_id = entity.map(|id| id.parse().unwrap());
        Used { bin, entity_id, units, events: 1 }
    }

    const MONTH: (&str, &str) = ("2026-11-10T09:30:00Z", "2026-12-10T09:30:00Z");

    fn asked(from: Option<&str>, to: Option<&str>, bin: Bin) -> Result<Span, String> {
        let period = BillingPeriod { start: at(MONTH.0), end: at(MONTH.1) };
        span(from.map(at), to.map(at), period, bin).map_err(|error| error.message)
    }

    #[test]
    fn the_first_and_the_last_bin_are_cut_where_the_span_is() {
        let span = asked(None, Some("2026-11-12T06:00:00Z"), Bin::Day).unwrap();
        let (first, last) = ends(span);
        let bins = bins(&[used(first, None, 2), used(last, Some("jo"), 3)], span, false);
        let told: Vec<_> =
            bins.iter().map(|b| format!("{} {} {}", b.start, b.end, b.units)).collect();
        assert_eq!(
            told,
            [
                "2026-11-10T09:30:00Z 2026-11-11T00:00:00Z 2",
                "2026-11-11T00:00:00Z 2026-11-12T00:00:00Z 0",
                "2026-11-12T00:00:00Z 2026-11-12T06:00:00Z 3",
            ]
        );
    }

    #[test]
    fn a_thousand_bins_are_the_most() {
        let from = Some("2026-11-10T00:00:00Z");
        let thousand_hours = asked(from, Some("2026-12-21T16:00:00Z"), Bin::Hour).unwrap();
        assert_eq!(bins(&[], thousand_hours, true).len(), 1000);
        let more = asked(from, Some("2026-12-21T16:00:00.001Z"), Bin::Hour).unwrap_err();
        assert!(more.starts_with("to is more than 1000 bins after from"), "{more}");
        let ages = asked(Some("-009999-01-03T00:00:00Z"), Some("9999-12-30T00:00:00Z"), Bin::Hour);
        assert!(ages.is_err());
    }

    #[test]
    fn nothing_and_less_is_no_span() {
        for to in ["2026-11-10T09:30:00Z", "2026-11-01T00:00:00Z"] {
            assert_eq!(asked(None, Some(to), Bin::Day).unwrap_err(), "to must be later than from");
        }
    }

    #[test]
    fn who_used_most_comes_first() {
        let used = [
            used(1, None, 2),
            used(1, Some("al"), 1),
            used(2, Some("jo"), 4),
            used(3, Some("al"), 1),
        ];
        let told: Vec<_> = entities(&used)
            .into_iter()
            .map(|e| (e.entity_id.map(String::from), e.units, e.events))
            .collect();
        let named = |id: &str| Some(id.to_owned());
        assert_eq!(told, [(named("jo"), 4, 1), (None, 2, 1), (named("al"), 2, 2)]);
    }
}
