//! The tables of what is particular to a customer: reservations, overrides, grants and their draws.

use tollgate::domain::answer::{Hold, HoldState};
use tollgate::domain::quota::{Draw, DrawOrder, Grant, Override, Quotas};
use tollgate::store::plans::Untold;
use tollgate::store::quotas::{NewDraw, QuotaKey};
use tollgate::store::reservations::Reservation;

use super::*;

fn minutes(minutes: u64) -> Timestamp {
    now().plus(Duration::from_secs(60 * minutes))
}

/// A pending one, with something in every column that such a one has.
fn reservation(id: &str, expires_at: Timestamp) -> Reservation {
    let id = id.parse().unwrap();
    Reservation {
        hold: Hold { id, state: HoldState::Pending, units: 3, expires_at },
        counter: counter_key(),
        period_end: november().end,
        entity_id: Some("jo".to_owned()),
        created_at: now(),
        settled_at: None,
    }
}

fn settled(reservation: &Reservation, state: HoldState) -> Reservation {
    let hold = Hold { state, ..reservation.hold.clone() };
    Reservation { hold, settled_at: Some(minutes(9)), ..reservation.clone() }
}

fn quota_key(customer: &str) -> QuotaKey {
    (customer.parse().unwrap(), "ai_runs".parse().unwrap())
}

fn own(ends_at: Option<Timestamp>) -> Override {
    Override {
        plan_id: Some("team".parse().unwrap()),
        enforcement: Enforcement::Hard { granted: 20_000 },
        ends_at,
        created_at: now(),
        note: Some("for Ada's team".to_owned()),
    }
}

fn grant(id: &str, expires_at: Option<Timestamp>) -> Grant {
    Grant {
        grant_id: id.to_owned(),
        units: 10,
        used: 0,
        draw: DrawOrder::Before,
        expires_at,
        created_at: now(),
        note: Some("sorry for Monday".to_owned()),
    }
}

fn draw(grant_id: &str, request_key: &str, units: i64) -> NewDraw {
    let draw = Draw { grant_id: grant_id.to_owned(), units };
    NewDraw { counter: counter_key(), request_key: request_key.to_owned(), draw }
}

both_databases! {
    async fn those_whom_a_version_is_to_be_told_to_are_taken_in_order_and_once(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        let (version, _) = tx.activate_plans("a plans file").await.unwrap();
        tx.leave_untold(version).await.unwrap();
        for id in ["ann", "bob", "cat"] {
            let terms_version = (id == "bob").then_some(1);
            let mut customer = Customer { id: id.parse().unwrap(), stripe_customer_id: None, ..customer() };
            tx.insert_customer(&customer).await.unwrap();
            customer.terms_version = terms_version;
            tx.update_customer(&customer).await.unwrap();
        }
        tx.commit().await.unwrap();
        let on_terms = async |after| store.customers_on_terms_in_force(after, 9).await.unwrap();
        assert_eq!(on_terms("").await, ["ann".parse().unwrap(), "cat".parse().unwrap()]);
        assert_eq!(on_terms("ann").await, ["cat".parse().unwrap()]);
        let untold = store.untold_plans().await.unwrap().unwrap();
        assert_eq!(untold, Untold { version, activated_at: now(), told_through: String::new() });
        let mut tx = store.begin().await.unwrap();
        assert!(tx.take_untold(&untold, Some("ann")).await.unwrap());
        assert!(!tx.take_untold(&untold, Some("ann")).await.unwrap(), "somebody has");
        tx.commit().await.unwrap();
        let untold = store.untold_plans().await.unwrap().unwrap();
        assert_eq!(untold.told_through, "ann");
        let mut tx = store.begin().await.unwrap();
        assert!(tx.take_untold(&untold, None).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(store.untold_plans().await.unwrap(), None);
    }

    async fn a_threshold_is_told_until_its_notice_came_to_nothing(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        tx.insert_customer(&customer()).await.unwrap();
        let told = notice();
        assert!(!tx.is_told(&told).await.unwrap());
        tx.insert_notice(&told).await.unwrap();
        let again = Notice { entitlement_version: told.entitlement_version + 1, ..told.clone() };
        assert!(tx.is_told(&again).await.unwrap());
        assert!(!tx.is_told(&Notice { mark: Mark::Percent(79), ..told.clone() }).await.unwrap());
        tx.move_notice(&told.notice_id, NoticeState::Due, NoticeState::Dropped, None).await.unwrap();
        assert!(!tx.is_told(&again).await.unwrap());
        tx.commit().await.unwrap();
    }

    async fn reservations_are_written_found_and_settled(db: TestDb) {
        let store = open(&db).await;
        let (one, two) = (reservation("res_1", minutes(1)), reservation("res_2", minutes(2)));
        let mut tx = store.begin().await.unwrap();
        tx.put_reservations(&[one.clone(), two.clone()]).await.unwrap();
        let unknown = "res_3".parse().unwrap();
        let ids = [&one.hold.id, &unknown, &two.hold.id];
        let mut found = tx.reservations(&ids).await.unwrap();
        found.sort_by_key(|found| found.hold.id.to_string());
        assert_eq!(found, [one.clone(), two.clone()]);
        assert_eq!(tx.expired_holds_of(&acme(), minutes(1), 9).await.unwrap(), std::slice::from_ref(&one));
        assert_eq!(tx.expired_holds_of(&acme(), minutes(5), 9).await.unwrap(), [one.clone(), two.clone()]);
        tx.commit().await.unwrap();
        let due = async |moment| store.customers_with_expired_holds(moment, 9).await.unwrap();
        assert_eq!(due(minutes(1).minus(Duration::from_millis(1))).await, []);
        assert_eq!(due(minutes(5)).await, [acme()], "named once");
        let ended = [settled(&one, HoldState::Committed), settled(&two, HoldState::Expired)];
        let mut tx = store.begin().await.unwrap();
        tx.put_reservations(&ended).await.unwrap();
        assert_eq!(tx.reservations(&[&one.hold.id]).await.unwrap(), ended[..1]);
        assert_eq!(tx.expired_holds_of(&acme(), minutes(5), 9).await.unwrap(), []);
        let late = settled(&two, HoldState::Released);
        tx.put_reservations(std::slice::from_ref(&late)).await.unwrap();
        assert_eq!(tx.reservations(&[&two.hold.id]).await.unwrap(), [late]);
        tx.commit().await.unwrap();
        assert_eq!(due(minutes(5)).await, []);
    }

    async fn overrides_are_set_replaced_and_taken_away(db: TestDb) {
        let store = open(&db).await;
        let (key, ids) = (quota_key("acme"), [&acme()]);
        let mut tx = store.begin().await.unwrap();
        for enforcement in [
            Enforcement::Soft { granted: 7 }, Enforcement::Unlimited, Enforcement::Hard { granted: 20_000 },
        ] {
            let own = Override { enforcement, ..own(None) };
            tx.put_override(&key, &own).await.unwrap();
            let quotas = Quotas { own: Some(own), grants: Vec::new() };
            assert_eq!(tx.quotas(&ids).await.unwrap(), [(key.clone(), quotas)].into());
        }
        let anywhere = Override { plan_id: None, note: None, ..own(Some(minutes(1))) };
        tx.put_override(&key, &anywhere).await.unwrap();
        tx.commit().await.unwrap();
        let found = store.quotas_of(&acme()).await.unwrap();
        assert_eq!(found[&key].own, Some(anywhere));
        let mut tx = store.begin().await.unwrap();
        assert!(tx.delete_override(&key).await.unwrap());
        assert!(!tx.delete_override(&key).await.unwrap());
        assert!(tx.quotas(&ids).await.unwrap().is_empty());
        tx.commit().await.unwrap();
    }

    async fn a_feature_is_given_while_an_override_or_a_grant_of_it_is_in_force(db: TestDb) {
        let store = open(&db).await;
        let key = quota_key("acme");
        let given = || async { store.features_given().await.unwrap().into_iter().map(|(id, _)| id).collect::<Vec<_>>() };
        let mut tx = store.begin().await.unwrap();
        assert!(tx.insert_customer(&customer()).await.unwrap());
        tx.put_override(&key, &own(Some(now()))).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(given().await, [""; 0], "it has ended");
        let mut tx = store.begin().await.unwrap();
        tx.put_override(&key, &own(Some(minutes(1)))).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(store.features_given().await.unwrap(), [("ai_runs".to_owned(), "acme".to_owned())]);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.delete_override(&key).await.unwrap());
        assert!(tx.insert_grant(&key, &grant("g1", None)).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(given().await, ["ai_runs"]);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.delete_customer(&acme()).await.unwrap());
        tx.commit().await.unwrap();
        assert_eq!(given().await, [""; 0], "nobody can use it");
    }

    async fn grants_are_added_once_drawn_on_and_revoked(db: TestDb) {
        let store = open(&db).await;
        let key = quota_key("acme");
        let mut tx = store.begin().await.unwrap();
        let after = Grant { draw: DrawOrder::After, note: None, ..grant("g2", Some(minutes(1))) };
        for new in [grant("g1", None), after.clone()] {
            assert!(tx.insert_grant(&key, &new).await.unwrap());
            assert!(!tx.insert_grant(&key, &new).await.unwrap(), "it is there");
        }
        tx.put_draws(&[draw("g1", "k:a", 4), draw("g2", "k:a", 1), draw("g1", "k:b", 2)]).await.unwrap();
        let mut live = tx.quotas(&[&acme()]).await.unwrap().remove(&key).unwrap().grants;
        live.sort_by_key(|grant| grant.grant_id.clone());
        assert_eq!(live, [Grant { used: 6, ..grant("g1", None) }, Grant { used: 1, ..after }]);
        tx.put_draws(&[draw("g1", "k:c", 4)]).await.unwrap();
        tx.commit().await.unwrap();
        let names = async || -> Vec<String> {
            let found = store.quotas_of(&acme()).await.unwrap().remove(&key);
            found.into_iter().flat_map(|quotas| quotas.grants).map(|grant| grant.grant_id).collect()
        };
        assert_eq!(names().await, ["g2"], "the other is used up");
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.revoke_grant(&acme(), "g2").await.unwrap(), Some(key.1.clone()));
        assert_eq!(tx.revoke_grant(&acme(), "g2").await.unwrap(), None);
        tx.commit().await.unwrap();
        assert_eq!(names().await, Vec::<String>::new());
        let mut listed = store.list_grants(&acme()).await.unwrap();
        listed.sort_by_key(|(_, _, grant)| grant.grant_id.clone());
        let told: Vec<_> = listed.iter().map(|(feature, state, grant)| (feature.as_str(), state.as_str(), grant.used)).collect();
        assert_eq!(told, [("ai_runs", "live", 10), ("ai_runs", "revoked", 1)]);
        // The database itself refuses what no draw may do.
        let mut tx = store.begin().await.unwrap();
        assert!(tx.put_draws(&[draw("g1", "k:d", 1)]).await.is_err(), "more than there is");
    }

    async fn quotas_end_at_their_instant_and_are_settled_once(db: TestDb) {
        let clock = Clock::manual(now());
        let store = Store::open(&db.url.clone().into(), clock.clone()).await.unwrap();
        store.migrate().await.unwrap();
        let end = minutes(1);
        let mut tx = store.begin().await.unwrap();
        for id in ["acme", "beta", "gone"] {
            let customer = Customer { id: id.parse().unwrap(), stripe_customer_id: None, ..customer() };
            tx.insert_customer(&customer).await.unwrap();
            tx.insert_grant(&quota_key(id), &grant("g", Some(end))).await.unwrap();
        }
        tx.put_override(&quota_key("acme"), &own(Some(end))).await.unwrap();
        tx.insert_grant(&quota_key("acme"), &grant("for-ever", None)).await.unwrap();
        tx.delete_customer(&"acme".parse().unwrap()).await.unwrap();
        tx.commit().await.unwrap();
        let due = async |moment, limit| store.customers_with_ended_quotas(moment, limit).await.unwrap();
        assert_eq!(due(end.minus(Duration::from_millis(1)), 9).await, []);
        // Nobody is told of a deleted customer's quotas, so it must not stand before the others.
        assert_eq!(due(end, 1).await, ["beta".parse().unwrap()]);
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.settle_ended_quotas(&acme()).await.unwrap(), [], "their time has not come");
        tx.commit().await.unwrap();
        clock.advance(Duration::from_secs(60)).unwrap();
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.settle_ended_quotas(&acme()).await.unwrap(), [quota_key("acme").1], "named once");
        assert_eq!(tx.settle_ended_quotas(&acme()).await.unwrap(), []);
        let left = tx.quotas(&[&acme()]).await.unwrap().remove(&quota_key("acme")).unwrap();
        assert_eq!(left, Quotas { own: None, grants: vec![grant("for-ever", None)] });
        tx.commit().await.unwrap();
        assert_eq!(due(end, 9).await, ["beta".parse().unwrap(), "gone".parse().unwrap()]);
    }

    async fn changed_limits_reach_those_who_are_on_the_plan_and_keep_no_older_terms(db: TestDb) {
        let store = open(&db).await;
        let mut tx = store.begin().await.unwrap();
        assert_eq!(tx.newest_plans().await.unwrap(), None);
        tx.activate_plans("old").await.unwrap();
        assert_eq!(tx.newest_plans().await.unwrap(), Some((1, "old".to_owned())));
        for (id, plan_id, terms_version) in
            [("default", None, None), ("gone", Some("pro"), None), ("kept", Some("pro"), Some(7)), ("pro", Some("pro"), None)]
        {
            let tier = Tier { plan_id: plan_id.map(|plan| plan.parse().unwrap()), ..Tier::initial(now()) };
            let id = id.parse().unwrap();
            let customer = Customer { id, stripe_customer_id: None, tier, terms_version, ..customer() };
            tx.insert_customer(&customer).await.unwrap();
            tx.update_customer(&customer).await.unwrap();
        }
        tx.delete_customer(&"gone".parse().unwrap()).await.unwrap();
        let pro = "pro".parse().unwrap();
        assert_eq!(tx.renew_entitlements(Some(&pro), false).await.unwrap(), 1);
        assert_eq!(tx.keep_terms(Some(&pro), true, 1).await.unwrap(), 2);
        assert_eq!(tx.keep_terms(Some(&pro), true, 2).await.unwrap(), 0, "they keep what they have");
        assert_eq!(tx.renew_entitlements(Some(&pro), true).await.unwrap(), 0);
        tx.commit().await.unwrap();
        let customers = "SELECT customer_id, terms_version, entitlement_version FROM customers \
            WHERE deleted_at_ms IS NULL ORDER BY customer_id";
        assert_eq!(rows(&db.url, customers).await, ["default|1|1", "kept|7|1", "pro|1|2"]);
    }
}
