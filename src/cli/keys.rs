//! `tollgate keys`: a key is shown once, when it is made; the database keeps its hash.

use clap::Subcommand;

use super::start::{StartError, open_store};
use crate::clock::Clock;
use crate::config::Config;
use crate::entropy::Entropy;
use crate::http::auth::hash;

#[derive(Subcommand)]
pub enum Command {
    /// Make a key and print it; it cannot be shown again.
    Create {
        /// What the key is for, to tell it from others.
        #[arg(long, default_value = "default")]
        name: String,
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the keys, without the keys themselves.
    List {
        /// Answer in JSON.
        #[arg(long)]
        json: bool,
    },
    /// Make a key worthless. Daemons that run notice within seconds.
    Revoke {
        /// As `keys list` shows it.
        key_id: String,
    },
}

pub async fn run(config: &Config, command: Command) -> Result<(), StartError> {
    let store = open_store(config, Clock::system()).await?;
    store.migrate().await?;
    match command {
        Command::Create { name, json } => {
            let entropy = Entropy::system();
            let key = format!("tgk_{}", hex::encode(entropy.secret()));
            let mut tx = store.begin().await?;
            let key_id = entropy.id("key", tx.now);
            tx.insert_key(&key_id, &name, &hash(&key)).await?;
            tx.commit().await?;
            if json {
                println!("{}", serde_json::json!({"key_id": key_id, "name": name, "key": key}));
            } else {
                println!("{key_id}  {name}\n{key}");
            }
        }
        Command::List { json } => {
            let keys = store.list_keys().await?;
            if json {
                println!("{}", serde_json::to_string(&keys)?);
            } else {
                for key in keys {
                    let state = match key.revoked_at {
                        Some(at) => format!("revoked {at}"),
                        None => "live".to_owned(),
                    };
                    println!("{}  {}  {:<20}  {state}", key.key_id, key.created_at, key.name);
                }
            }
        }
        Command::Revoke { key_id } => {
            let mut tx = store.begin().await?;
            let revoked = tx.revoke_key(&key_id).await?;
            tx.commit().await?;
            if !revoked {
                return Err(anyhow::anyhow!("there is no live key {key_id}").into());
            }
            println!("{key_id} is revoked");
        }
    }
    store.close().await;
    Ok(())
}
