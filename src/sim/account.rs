//! The account that the key belongs to.

use serde_json::{Value, json};

use super::answer::ApiError;
use super::params::Params;
use super::state::Call;

pub(super) fn retrieve(_call: &Call<'_>, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    Ok(json!({
        "id": "acct_1Simulated",
        "object": "account",
        "charges_enabled": true,
        "country": "US",
        "default_currency": "usd",
        "details_submitted": true,
        "email": "owner@example.com",
        "payouts_enabled": true,
        "type": "standard",
    }))
}
