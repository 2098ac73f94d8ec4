//! What every part of the daemon shares, and nothing that knows its users.

use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::Context as _;
use secrecy::SecretString;
use tokio::sync::Notify;

use crate::clock::Clock;
use crate::domain::link::Links;
use crate::domain::plan::Catalog;
use crate::domain::returning::ReturnOrigins;
use crate::entropy::Entropy;
use crate::mail::Mailer;
use crate::mail::templates::Templates;
use crate::store::journal::Outages;
use crate::store::plans::TermsInUse;
use crate::store::{Store, StoreError};
use crate::stripe::Stripe;

/// The shared parts. Clones share them, and cost next to nothing.
#[derive(Clone)]
pub struct App(Arc<Shared>);

/// What is shared.
pub struct Shared {
    pub clock: Clock,
    pub entropy: Entropy,
    pub store: Store,
    pub plans: Plans,
    pub plans_file: PlansFile,
    /// `None` without a `STRIPE_SECRET_KEY`: the gate works, nothing is reported or synced.
    pub stripe: Option<Stripe>,
    /// `None` without an `SMTP_URL`: notices wait.
    pub mailer: Option<Mailer>,
    pub templates: Templates,
    pub links: Links,
    /// Where customers may be sent back to after an upgrade.
    pub returns: ReturnOrigins,
    pub credentials: Credentials,
    pub nudges: Nudges,
    pub outages: Outages,
    /// Names this process among the replicas, in leases.
    pub replica_id: Box<str>,
}

impl App {
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The secrets that callers are held against.
pub struct Credentials {
    pub api_key: Option<SecretString>,
    pub admin_token: Option<SecretString>,
    pub webhook_secrets: Vec<SecretString>,
}

/// Wakes a job before its schedule does. Losing a nudge costs latency, never correctness.
#[derive(Default)]
pub struct Nudges {
    pub inbox: Notify,
    pub meter_events: Notify,
}

/// Why a plans file that is right in itself cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum PlansRefused {
    #[error("the plans file lacks plans that customers are on: {}", .0.join(", "))]
    Lacks(Vec<String>),
    #[error(
        "the plans file lacks features that customers keep from an older one, or have an override or a \
         grant of: {}",
        .0.join(", ")
    )]
    LacksFeatures(Vec<String>),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Refuses plans that lack one that customers are on, or a feature of those that they keep the terms
/// of, or are to keep them, or one that support has given them more of. What is in force already has
/// done that harm, and keeps no daemon from starting.
pub async fn check_plans_in_use(
    store: &Store,
    source: &str,
    catalog: &Catalog,
) -> Result<(), PlansRefused> {
    let (mut plans, mut features) = (BTreeSet::new(), BTreeSet::new());
    let newest = store.active_plans().await?.map(|(_, source)| source);
    let is_in_force = newest.as_deref() == Some(source);
    for TermsInUse { plan_id, version } in store.terms_in_use().await? {
        let source = match version {
            Some(version) => store.plans_of(version).await?,
            None => newest.clone(),
        };
        // What a former build took and this one does not can have no terms to keep.
        let terms = source.and_then(|source| Catalog::parse(&source).ok());
        let default = terms.as_ref().and_then(|terms| terms.default_plan.as_ref());
        let is_bound = plan_id.is_some() || (version.is_some() && !is_in_force);
        let Some(id) = plan_id.or(default.map(ToString::to_string)) else { continue };
        let Some(plan) = catalog.plan(&id) else {
            // Who has no subscription and keeps nothing is on whatever the default is.
            plans.extend(is_bound.then_some(id));
            continue;
        };
        if !is_in_force && (version.is_some() || plan.grandfather) {
            let kept = terms.as_ref().and_then(|terms| terms.plan(&id));
            let kept = kept.into_iter().flat_map(|plan| plan.limits.keys());
            let missing = kept.filter(|feature| !catalog.features.contains_key(*feature));
            features.extend(missing.map(ToString::to_string));
        }
    }
    // What the file in force has not got either is not taken away by this one.
    let before = newest.filter(|_| !is_in_force).and_then(|newest| Catalog::parse(&newest).ok());
    if let Some(before) = before {
        let taken =
            |id: &str| before.features.contains_key(id) && !catalog.features.contains_key(id);
        let given = store.features_given().await?.into_iter().filter(|(id, _)| taken(id));
        features.extend(given.map(|(id, customer)| format!("{id} (given to {customer})")));
    }
    match (plans.is_empty(), features.is_empty()) {
        (false, _) => Err(PlansRefused::Lacks(plans.into_iter().collect())),
        (true, false) => Err(PlansRefused::LacksFeatures(features.into_iter().collect())),
        (true, true) => Ok(()),
    }
}

/// The plans file on disk, watched for changes since it was last accepted.
pub struct PlansFile {
    path: PathBuf,
    last_seen: Mutex<String>,
}

impl PlansFile {
    /// `accepted` is the text that is in force.
    pub fn new(path: PathBuf, accepted: String) -> Self {
        Self { path, last_seen: Mutex::new(accepted) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's text if it differs from what was last accepted.
    pub fn changed(&self) -> anyhow::Result<Option<String>> {
        let text = std::fs::read_to_string(&self.path)
            .with_context(|| format!("{} cannot be read", self.path.display()))?;
        let last_seen = self.last_seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((*last_seen != text).then_some(text))
    }

    /// Takes `text` as the one in force.
    pub fn accept(&self, text: String) {
        *self.last_seen.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

/// The plans in force, and older versions that remembered answers were given under.
#[derive(Clone)]
pub struct Plans(Arc<RwLock<Versions>>);

struct Versions {
    active: (i64, Arc<Catalog>),
    older: HashMap<i64, Arc<Catalog>>,
}

impl Plans {
    pub fn new(version: i64, catalog: Catalog) -> Self {
        let active = (version, Arc::new(catalog));
        Self(Arc::new(RwLock::new(Versions { active, older: HashMap::new() })))
    }

    /// The plans in force and their version.
    pub fn active(&self) -> (i64, Arc<Catalog>) {
        self.0.read().unwrap_or_else(PoisonError::into_inner).active.clone()
    }

    /// Puts a newer version in force; an older one than the present is ignored.
    pub fn activate(&self, version: i64, catalog: Catalog) {
        let mut versions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if version > versions.active.0 {
            let (old, plans) =
                std::mem::replace(&mut versions.active, (version, Arc::new(catalog)));
            versions.older.insert(old, plans);
        }
    }

    /// The plans of that version, from memory or the database.
    pub async fn version(&self, version: i64, store: &Store) -> Result<Arc<Catalog>, StoreError> {
        let known = {
            let versions = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if versions.active.0 == version {
                Some(versions.active.1.clone())
            } else {
                versions.older.get(&version).cloned()
            }
        };
        if let Some(catalog) = known {
            return Ok(catalog);
        }
        let corrupt = StoreError::Corrupt { table: "plan_versions", column: "source" };
        let source = store.plans_of(version).await?;
        let catalog = source.and_then(|source| Catalog::parse(&source).ok()).ok_or(corrupt)?;
        let catalog = Arc::new(catalog);
        let mut versions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        versions.older.insert(version, catalog.clone());
        Ok(catalog)
    }
}
