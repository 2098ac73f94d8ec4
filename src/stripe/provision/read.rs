//! Reading what stands in the account. Of each object only the fields that decide something.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{MARK, PLAN_MARK, PORTAL_MARK, REPLACES_MARK, Stripe};
use crate::domain::provision::found::{
    Destination, Endpoint, Found, Meter, Portal, Price, Product, Unseen,
};
use crate::domain::provision::{Kind, Wanted};
use crate::stripe::{StripeError, StripeErrorKind};

/// The most Stripe gives on one page.
const PAGE: &str = "100";
/// Ten thousand objects: a list that goes on longer does not end.
const MAX_PAGES: usize = 100;
/// How many lookup keys one call may name.
const LOOKUP_KEYS: usize = 10;

type Result<T> = std::result::Result<T, StripeError>;

impl Stripe {
    /// What of the wanted is there. Asks one list after the other, some twenty calls at most for
    /// ten plans: far below any rate limit of Stripe's.
    pub async fn find(&self, wanted: &Wanted) -> Found {
        let prices = self.find_prices(wanted).await;
        let products = match &prices {
            Ok(prices) => seen(Kind::Product, self.find_products(wanted, prices).await),
            // Which products to look for is not known then.
            Err(_) => Ok(Vec::new()),
        };
        Found {
            meters: seen(Kind::Meter, self.find_meters().await),
            prices: seen(Kind::Price, prices),
            products,
            portals: seen(Kind::Portal, self.find_portals().await),
            endpoints: seen(Kind::Endpoint, self.find_endpoints().await),
            destinations: seen(Kind::Destination, self.find_destinations().await),
        }
    }

    /// The active price with this lookup key, if there is one.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn price_by_lookup_key(&self, lookup_key: &str) -> Result<Option<Price>> {
        let query = [("active", "true"), ("lookup_keys[]", lookup_key)];
        self.every_row("/v1/prices", &query).await?.first().map(price).transpose()
    }

    /// The active portal configuration that is ours, if there is one.
    ///
    /// # Errors
    /// When Stripe cannot be asked or refuses to answer.
    pub async fn portal(&self) -> Result<Option<Portal>> {
        Ok(self.find_portals().await?.into_iter().next())
    }

    async fn find_meters(&self) -> Result<Vec<Meter>> {
        let rows = self.every_row("/v1/billing/meters", &[]).await?;
        rows.iter().map(meter).collect()
    }

    async fn find_prices(&self, wanted: &Wanted) -> Result<Vec<Price>> {
        let mut prices = Vec::new();
        for offers in wanted.offers.chunks(LOOKUP_KEYS) {
            let keys = offers.iter().map(|offer| ("lookup_keys[]", offer.lookup_key.as_str()));
            let rows = self.every_row("/v1/prices", &keys.collect::<Vec<_>>()).await?;
            prices.extend(rows.iter().map(price).collect::<Result<Vec<_>>>()?);
        }
        let replaced: Vec<String> =
            prices.iter().filter_map(|price: &Price| price.replaces.clone()).collect();
        for id in replaced {
            match self.transport.get(&format!("/v1/prices/{}", segment(&id)?), &[]).await {
                Ok(found) => prices.push(price(&found.body)?),
                // Metadata is anybody's to write; a price that is not there cannot be open.
                Err(error) if error.is_missing() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(prices)
    }

    async fn find_products(&self, wanted: &Wanted, prices: &[Price]) -> Result<Vec<Product>> {
        let own = wanted.offers.iter().map(|offer| offer.own_product());
        let ids: BTreeSet<String> =
            prices.iter().map(|price| price.product.clone()).chain(own).collect();
        let mut products = Vec::new();
        for ids in ids.into_iter().collect::<Vec<_>>().chunks(LOOKUP_KEYS) {
            let ids: Vec<_> = ids.iter().map(|id| ("ids[]", id.as_str())).collect();
            let rows = self.every_row("/v1/products", &ids).await?;
            products.extend(rows.iter().map(product).collect::<Result<Vec<_>>>()?);
        }
        Ok(products)
    }

    async fn find_portals(&self) -> Result<Vec<Portal>> {
        // The products of a configuration are left out unless asked for.
        let query =
            [("active", "true"), ("expand[]", "data.features.subscription_update.products")];
        let rows = self.every_row("/v1/billing_portal/configurations", &query).await?;
        let ours = rows.iter().filter(|row| row["metadata"][MARK] == PORTAL_MARK);
        ours.map(portal).collect()
    }

    async fn find_endpoints(&self) -> Result<Vec<Endpoint>> {
        let rows = self.every_row("/v1/webhook_endpoints", &[]).await?;
        rows.iter().map(endpoint).collect()
    }

    async fn find_destinations(&self) -> Result<Vec<Destination>> {
        let mut path = "/v2/core/event_destinations".to_owned();
        let mut query = vec![("include[0]", "webhook_endpoint.url")];
        let mut rows = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.transport.get(&path, &query).await?.body;
            rows.extend(page["data"].as_array().cloned().unwrap_or_default());
            let Some(next) = page["next_page_url"].as_str() else {
                let thin = rows.iter().filter(|row| {
                    row["event_payload"] == "thin" && row["type"] == "webhook_endpoint"
                });
                return thin.map(destination).collect();
            };
            // It names its own query; only where it leads on Stripe's own host is followed.
            let at = next.find("/v2/").ok_or_else(|| unreadable("next_page_url"))?;
            next[at..].clone_into(&mut path);
            query.clear();
        }
        Err(StripeError::unreachable("a list of Stripe's does not end"))
    }

    /// All rows of a list of version 1.
    async fn every_row(&self, path: &str, query: &[(&str, &str)]) -> Result<Vec<Value>> {
        let mut rows: Vec<Value> = Vec::new();
        for _ in 0..MAX_PAGES {
            let mut query = [query, &[("limit", PAGE)]].concat();
            let after = rows.last().and_then(|row| text(&row["id"]));
            if let Some(after) = &after {
                query.push(("starting_after", after));
            }
            let page = self.transport.get(path, &query).await?.body;
            let data = page["data"].as_array().ok_or_else(|| unreadable("data"))?;
            rows.extend(data.iter().cloned());
            // An empty page cannot move the cursor, whatever it promises.
            if page["has_more"] != true || data.is_empty() {
                return Ok(rows);
            }
        }
        Err(StripeError::unreachable("a list of Stripe's does not end"))
    }
}

fn seen<T>(kind: Kind, found: Result<T>) -> std::result::Result<T, Unseen> {
    found.map_err(|error| Unseen {
        kind,
        reason: error.to_string(),
        forbidden: matches!(error.kind, StripeErrorKind::Unauthorized { status: 403, .. }),
    })
}

fn unreadable(field: &str) -> StripeError {
    StripeError::unreadable(format!("its {field}"))
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

pub(super) fn required(row: &Value, field: &str) -> Result<String> {
    text(&row[field]).ok_or_else(|| unreadable(field))
}

/// An id of Stripe's as a step of a path.
pub(super) fn segment(id: &str) -> Result<&str> {
    crate::stripe::objects::path_segment(id, "object id")
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(text).collect()
}

fn is_on(feature: &Value) -> bool {
    feature["enabled"] == true
}

fn meter(row: &Value) -> Result<Meter> {
    let inner = |section: &str, field: &str| required(&row[section], field);
    Ok(Meter {
        id: required(row, "id")?,
        event_name: required(row, "event_name")?,
        display_name: required(row, "display_name")?,
        active: row["status"] == "active",
        formula: inner("default_aggregation", "formula")?,
        customer_key: inner("customer_mapping", "event_payload_key")?,
        value_key: inner("value_settings", "event_payload_key")?,
        event_time_window: text(&row["event_time_window"]),
    })
}

fn product(row: &Value) -> Result<Product> {
    Ok(Product {
        id: required(row, "id")?,
        name: required(row, "name")?,
        active: row["active"] == true,
        default_price: id_of(&row["default_price"]),
    })
}

/// The id of a reference, which is an id or the whole object.
fn id_of(reference: &Value) -> Option<String> {
    text(reference).or_else(|| text(&reference["id"]))
}

fn price(row: &Value) -> Result<Price> {
    let recurring = &row["recurring"];
    Ok(Price {
        id: required(row, "id")?,
        product: id_of(&row["product"]).ok_or_else(|| unreadable("product"))?,
        lookup_key: text(&row["lookup_key"]),
        plan_mark: text(&row["metadata"][PLAN_MARK]),
        active: row["active"] == true,
        livemode: row["livemode"] == true,
        amount_minor: row["unit_amount"].as_i64(),
        currency: required(row, "currency")?,
        interval: text(&recurring["interval"]),
        interval_count: recurring["interval_count"].as_i64().unwrap_or(1),
        metered: recurring["usage_type"] == "metered",
        plain: row["billing_scheme"] == "per_unit" && row["transform_quantity"].is_null(),
        replaces: text(&row["metadata"][REPLACES_MARK]),
    })
}

fn portal(row: &Value) -> Result<Portal> {
    let features = &row["features"];
    let (cancel, update) = (&features["subscription_cancel"], &features["subscription_update"]);
    let conditions = update["schedule_at_period_end"]["conditions"].as_array();
    let defers = |kind: &str| conditions.into_iter().flatten().any(|c| c["type"] == kind);
    let products = update["products"].as_array();
    let prices = products.into_iter().flatten().flat_map(|product| {
        let prices = texts(&product["prices"]).into_iter();
        prices.filter_map(|price| Some((text(&product["product"])?, price)))
    });
    Ok(Portal {
        id: required(row, "id")?,
        cancels_at_period_end: is_on(cancel) && cancel["mode"] == "at_period_end",
        payment_methods: is_on(&features["payment_method_update"]),
        invoices: is_on(&features["invoice_history"]),
        changes: is_on(update)
            && texts(&update["default_allowed_updates"]) == ["price"]
            && update["proration_behavior"] == "always_invoice"
            && defers("decreasing_item_amount")
            && defers("shortening_interval"),
        prices: if is_on(update) { prices.collect() } else { Vec::new() },
    })
}

fn endpoint(row: &Value) -> Result<Endpoint> {
    Ok(Endpoint {
        id: required(row, "id")?,
        url: required(row, "url")?,
        api_version: text(&row["api_version"]),
        events: texts(&row["enabled_events"]),
        enabled: row["status"] == "enabled",
    })
}

fn destination(row: &Value) -> Result<Destination> {
    Ok(Destination {
        id: required(row, "id")?,
        url: required(&row["webhook_endpoint"], "url")?,
        events: texts(&row["enabled_events"]),
        enabled: row["status"] == "enabled",
    })
}
