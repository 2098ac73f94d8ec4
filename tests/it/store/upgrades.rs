//! What is claimed before Stripe is asked.

use tollgate::store::upgrades::{Checkout, StripeCustomerClaim};

use super::*;

fn claim(key: &str) -> StripeCustomerClaim {
    StripeCustomerClaim { idempotency_key: key.to_owned(), claimed_at: now() }
}

fn checkout(id: &str, plan: &str) -> Checkout {
    Checkout {
        customer_id: acme(),
        checkout_id: id.to_owned(),
        plan_id: plan.parse().unwrap(),
        price_id: format!("price_{plan}"),
        stripe_customer_id: "cus_1".to_owned(),
        return_url: format!("https://app.example.com/?a={KEY}"),
        claimed_at: now(),
        expires_at: now().plus(Duration::from_secs(3600)),
        session_id: None,
    }
}

/// A store whose customer is tied, and has no subscription.
async fn open_for_acme(db: &TestDb) -> Store {
    let store = open(db).await;
    let mut tx = store.begin().await.unwrap();
    assert!(
        tx.insert_customer(&Customer { tier: Tier::initial(now()), ..customer() }).await.unwrap()
    );
    tx.commit().await.unwrap();
    store
}

/// What is in force after a claim by one who has seen no subscription.
async fn claimed(store: &Store, wanted: &Checkout) -> Checkout {
    store.claim_checkout(wanted, None).await.unwrap().expect("all is as it was seen")
}

/// As it stands once its session is noted.
fn noted(checkout: &Checkout, session_id: &str) -> Checkout {
    Checkout { session_id: Some(session_id.to_owned()), ..checkout.clone() }
}

both_databases! {
    async fn a_claim_is_shared_until_it_is_renewed_by_one_who_knows_it(db: TestDb) {
        let store = open(&db).await;
        let claimed = async |key| store.claim_stripe_customer(&acme(), &claim(key)).await.unwrap();
        assert_eq!(claimed("one").await, claim("one"));
        assert_eq!(claimed("two").await, claim("one"));
        for (spent, fresh) in [("two", "three"), ("one", "four"), ("one", "five")] {
            store.renew_stripe_customer_claim(&acme(), spent, &claim(fresh)).await.unwrap();
        }
        assert_eq!(claimed("six").await, claim("four"));
    }

    async fn one_checkout_is_in_force_and_changes_only_under_who_has_seen_it(db: TestDb) {
        let store = open_for_acme(&db).await;
        let (pro, team) = (checkout("co_1", "pro"), checkout("co_2", "team"));
        assert_eq!(claimed(&store, &pro).await, pro);
        assert_eq!(claimed(&store, &team).await, pro);
        assert!(store.note_checkout_session(&pro, "cs_1").await.unwrap());
        assert!(store.note_checkout_session(&pro, "cs_1").await.unwrap(), "the twin notes the same");
        assert!(!store.note_checkout_session(&pro, "cs_9").await.unwrap());
        let pro = noted(&pro, "cs_1");
        assert_eq!(claimed(&store, &team).await, pro);

        let unseen = checkout("co_1", "pro");
        assert!(!store.replace_checkout(&unseen, &team).await.unwrap(), "a session was noted since");
        assert!(store.replace_checkout(&pro, &team).await.unwrap());
        assert!(!store.replace_checkout(&pro, &team).await.unwrap());
        assert!(!store.note_checkout_session(&unseen, "cs_1").await.unwrap(), "it is replaced");
        assert_eq!(claimed(&store, &pro).await, team);
    }

    async fn who_has_seen_another_subscription_or_stripe_customer_claims_nothing(db: TestDb) {
        let store = open_for_acme(&db).await;
        let pro = checkout("co_1", "pro");
        let elsewhere = Checkout { stripe_customer_id: "cus_2".to_owned(), ..pro.clone() };
        for (wanted, subscription_id) in [(&pro, Some("sub_1")), (&elsewhere, None)] {
            assert_eq!(store.claim_checkout(wanted, subscription_id).await.unwrap(), None);
        }
        let mut tx = store.begin().await.unwrap();
        tx.delete_customer(&acme()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.claim_checkout(&pro, None).await.unwrap(), None);
        assert_eq!(store.checkout(&acme()).await.unwrap(), None);
    }

    async fn only_what_nobody_was_shown_is_dropped(db: TestDb) {
        let store = open_for_acme(&db).await;
        let pro = checkout("co_1", "pro");
        claimed(&store, &pro).await;
        store.note_checkout_session(&pro, "cs_1").await.unwrap();
        store.drop_checkout(&pro).await.unwrap();
        let team = checkout("co_2", "team");
        assert_eq!(claimed(&store, &team).await, noted(&pro, "cs_1"));
        store.replace_checkout(&noted(&pro, "cs_1"), &team).await.unwrap();
        store.drop_checkout(&team).await.unwrap();
        assert_eq!(claimed(&store, &pro).await, pro);
    }

    async fn a_checkout_that_is_left_is_to_be_closed_until_it_is(db: TestDb) {
        let store = open_for_acme(&db).await;
        let pro = checkout("co_1", "pro");
        assert_eq!(store.checkout(&acme()).await.unwrap(), None);
        claimed(&store, &pro).await;
        store.note_checkout_session(&pro, "cs_1").await.unwrap();
        assert_eq!(store.checkout(&acme()).await.unwrap(), Some(noted(&pro, "cs_1")));
        for _ in 0..2 {
            let mut tx = store.begin().await.unwrap();
            tx.leave_checkout(&acme()).await.unwrap();
            tx.commit().await.unwrap();
        }
        assert_eq!(store.checkout(&acme()).await.unwrap(), None);
        assert!(!store.note_checkout_session(&pro, "cs_1").await.unwrap(), "it is out of force");
        let (own, other) = (acme(), "globex".parse().unwrap());
        for (customer, left) in [(None, 1), (Some(&own), 1), (Some(&other), 0)] {
            assert_eq!(store.checkouts_to_close(customer, 9).await.unwrap().len(), left);
        }
        store.note_checkout_closed("cs_1").await.unwrap();
        assert_eq!(store.checkouts_to_close(None, 9).await.unwrap(), Vec::<String>::new());
    }

    async fn a_deleted_customers_claims_are_forgotten(db: TestDb) {
        let store = open_for_acme(&db).await;
        store.claim_stripe_customer(&acme(), &claim("one")).await.unwrap();
        claimed(&store, &checkout("co_1", "pro")).await;
        let mut tx = store.begin().await.unwrap();
        tx.forget_upgrades(&acme()).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.claim_stripe_customer(&acme(), &claim("two")).await.unwrap(), claim("two"));
        let team = checkout("co_2", "team");
        assert_eq!(claimed(&store, &team).await, team);
    }
}
