//! The account that the key belongs to.

use serde_json::{Value, json};

use super::Simulator;
use super::answer::ApiError;
use super::params::Params;
use super::state::Call;

pub(super) fn retrieve(call: &Call<'_>, params: Params) -> Result<Value, ApiError> {
    params.finish(&[])?;
    Ok(json!({
        "id": call.state.account_id.as_deref().unwrap_or("acct_1Simulated"),
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

impl Simulator {
    /// Makes this another account, to which the same key leads.
    pub fn set_account(&self, id: &str) {
        self.with_call(|call| call.state.account_id = Some(id.to_owned()));
    }
}
