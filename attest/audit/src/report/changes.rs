//! What a policy version changed, in words. Whatever lets more happen than before is marked: that is what a reader of many
//! versions looks for.
use quorate_core::policy::{Limits, PerWindow, Policy, Route};
use std::collections::BTreeMap;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) text: String,
    /// It lets more happen: a destination, a client, good values, a member, fewer signatures.
    pub(super) widens: bool,
}

/// Differences told of one version; the rest are counted.
const CHANGES_MAX: usize = 64;

/// What genesis sets.
pub(super) fn of_genesis(policy: &Policy) -> Vec<Change> {
    let mut list = List::default();
    let members: Vec<&str> = policy.members.values().map(|m| m.name.as_str()).collect();
    list.plain(format!(
        "{} members ({}), of which a checkpoint needs {}",
        members.len(),
        members.join(", "),
        policy.quorum()
    ));
    for route in policy.routes.values() {
        list.plain(format!("route {} to {}", route.id, destination(route)));
    }
    for grant in policy.clients.values() {
        let routes: Vec<&str> = grant.routes.iter().map(|r| r.as_str()).collect();
        list.plain(format!("client {} may use {}", grant.id, routes.join(", ")));
    }
    if policy.attestation.allow_software_tpm {
        list.widens("evidence of software TPMs is accepted".into());
    }
    list.finish()
}

/// What the newer version changed.
pub(super) fn between(old: &Policy, new: &Policy) -> Vec<Change> {
    let mut list = List::default();
    if old.admin_threshold != new.admin_threshold {
        let text = format!(
            "a change needs {} admins' signatures, before {}",
            new.admin_threshold, old.admin_threshold
        );
        list.push(text, new.admin_threshold < old.admin_threshold);
    }
    let (was, is): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (old.admins.iter().collect(), new.admins.iter().collect());
    each(&was, &is, |was, is| match (was, is) {
        (None, Some(name)) => list.widens(format!("admin {name:?} added")),
        (Some(name), None) => list.plain(format!("admin {name:?} removed")),
        (Some(was), Some(is)) if was != is => list.plain(format!("admin {was:?} is now called {is:?}")),
        _ => {}
    });
    if old.hostile_nodes_max != new.hostile_nodes_max {
        let text = format!(
            "certification survives {} hostile nodes, before {}",
            new.hostile_nodes_max, old.hostile_nodes_max
        );
        list.push(text, new.hostile_nodes_max < old.hostile_nodes_max);
    }
    each(&old.members, &new.members, |was, is| match (was, is) {
        (None, Some(m)) => list.widens(format!("member {} ({}, of {}) added", m.id, m.name, m.custodian)),
        (Some(m), None) => list.plain(format!("member {} ({}) removed", m.id, m.name)),
        (Some(was), Some(is)) if was != is => {
            if was.ak != is.ak {
                list.widens(format!("member {} has another attestation key", is.id));
            }
            if was.custodian != is.custodian {
                list.plain(format!(
                    "custodian of member {}: {}, before {}",
                    is.id, is.custodian, was.custodian
                ));
            }
            if was.reference_values != is.reference_values {
                list.widens(format!(
                    "member {} is held to the reference values {}",
                    is.id, is.reference_values
                ));
            }
            if (&was.address, &was.http) != (&is.address, &is.http) {
                list.plain(format!("member {} is at {} and {}", is.id, is.address, is.http));
            }
            if was.approvals != is.approvals || was.share_key != is.share_key {
                list.plain(format!("what member {} may unseal its shares with", is.id));
            }
        }
        _ => {}
    });
    each(&old.reference_values, &new.reference_values, |was, is| match (was, is) {
        (Some(was), Some(is)) if was == is => {}
        (_, None) => list.plain("a set of reference values removed".into()),
        (was, Some(is)) => {
            let before = |pcr: &u8, value: &[u8; 32]| {
                was.and_then(|w| w.pcrs.get(pcr)).is_some_and(|values| values.contains(value))
            };
            let added = is.pcrs.iter().flat_map(|(pcr, v)| v.iter().filter(move |v| !before(pcr, v))).count();
            list.push(format!("reference values changed: {added} new PCR value(s) are good"), added > 0);
        }
    });
    each(&old.releases, &new.releases, |was, is| {
        if was != is {
            list.plain("releases that reference values were taken from changed".into());
        }
    });
    let (was, is) = (&old.attestation, &new.attestation);
    if was.allow_software_tpm != is.allow_software_tpm {
        let text = if is.allow_software_tpm { "accepted" } else { "no longer accepted" };
        list.push(format!("evidence of software TPMs is {text}"), is.allow_software_tpm);
    }
    if was.pcrs != is.pcrs {
        list.push(format!("quotes cover the PCRs {:?}", is.pcrs), !is.pcrs.is_superset(&was.pcrs));
    }
    if was.lapse_ms != is.lapse_ms {
        let text = format!("evidence lapses after {} ms, before {}", is.lapse_ms, was.lapse_ms);
        list.push(text, is.lapse_ms > was.lapse_ms);
    }
    each(&old.routes, &new.routes, |was, is| match (was, is) {
        (None, Some(r)) => list.widens(format!("new route {} to {}", r.id, destination(r))),
        (Some(r), None) => list.plain(format!("route {} removed", r.id)),
        (Some(was), Some(is)) => route(&mut list, was, is),
        _ => {}
    });
    each(&old.clients, &new.clients, |was, is| match (was, is) {
        (None, Some(c)) => {
            let routes: Vec<&str> = c.routes.iter().map(|r| r.as_str()).collect();
            list.widens(format!("new client {} may use {}", c.id, routes.join(", ")));
        }
        (Some(c), None) => list.plain(format!("client {} removed", c.id)),
        (Some(was), Some(is)) => {
            if was.revoked != is.revoked {
                let text = if is.revoked { "revoked" } else { "no longer revoked" };
                list.push(format!("client {} {text}", is.id), !is.revoked);
            }
            if was.key != is.key {
                list.plain(format!("client {} has another key", is.id));
            }
            for added in is.routes.difference(&was.routes) {
                list.widens(format!("client {} may use {added}", is.id));
            }
            for removed in was.routes.difference(&is.routes) {
                list.plain(format!("client {} may no longer use {removed}", is.id));
            }
            if (was.limits, was.expires) != (is.limits, is.expires) {
                list.plain(format!("client {}: {}", is.id, limits(&is.limits)));
            }
            if was.team != is.team {
                let team = is.team.as_ref().map_or("no team".to_owned(), |t| format!("team {t}"));
                list.plain(format!("client {} is in {team}", is.id));
            }
            match (was.token_lifetime_ms_max, is.token_lifetime_ms_max) {
                (was, Some(ms)) if was.is_none_or(|was| was < ms) => {
                    list.widens(format!("client {} may issue tokens of {} s", is.id, ms / 1000));
                }
                (was, is_now) if was != is_now => {
                    let longest =
                        is_now.map_or("none".to_owned(), |ms| format!("of {} s at most", ms / 1000));
                    list.plain(format!("client {} may issue tokens: {longest}", is.id));
                }
                _ => {}
            }
        }
        _ => {}
    });
    list.finish()
}

/// Limits in words; what is not limited is left out.
fn limits(limits: &Limits) -> String {
    let kinds = [("requests", limits.requests), ("bytes", limits.bytes), ("micro-units", limits.money)];
    let each = |(kind, of): (&str, PerWindow<Option<u64>>)| {
        [("minute", of.minute), ("day", of.day), ("month", of.month)]
            .into_iter()
            .filter_map(|(window, limit)| limit.map(|limit| format!("{limit} {kind} a {window}")))
            .collect::<Vec<_>>()
    };
    let all: Vec<String> = kinds.into_iter().flat_map(each).collect();
    if all.is_empty() { "no limit".into() } else { all.join(", ") }
}

fn route(list: &mut List, was: &Route, is: &Route) {
    let (before, now) = (destination(was), destination(is));
    if before != now {
        list.widens(format!("route {} goes to {now}, before {before}", is.id));
    }
    match (&was.credential, &is.credential) {
        (None, Some(c)) => {
            list.plain(format!("route {} has a provider key, share epoch {}", is.id, c.share_epoch))
        }
        (Some(_), None) => list.plain(format!("route {} has no provider key any more", is.id)),
        (Some(was), Some(now)) if was.share_epoch != now.share_epoch => list.plain(format!(
            "the key of route {} was split anew: share epoch {}, before {}",
            is.id, now.share_epoch, was.share_epoch
        )),
        (Some(was), Some(now)) => {
            if was.frozen != now.frozen {
                let text = if now.frozen { "frozen by admins" } else { "no longer frozen" };
                list.push(format!("the key of route {} is {text}", is.id), !now.frozen);
            }
            if was.lifted != now.lifted {
                list.widens(format!("what the metering imposed on the key of route {} was lifted", is.id));
            }
        }
        (None, None) => {}
    }
    let (mut was, mut now) = (was.document.clone(), is.document.clone());
    (was.credential, now.credential) = (None, None);
    if was.paths != now.paths || was.models != now.models || was.headers != now.headers {
        list.widens(format!("paths, models or headers of route {} changed", is.id));
    }
    if was.ca_pem != now.ca_pem {
        list.widens(format!("the certificate authority that route {} trusts changed", is.id));
    }
}

fn destination(route: &Route) -> String {
    let d = &route.document;
    format!("{}:{}{}", d.host, d.port, d.base_path)
}

fn each<K: Ord, V>(old: &BTreeMap<K, V>, new: &BTreeMap<K, V>, mut tell: impl FnMut(Option<&V>, Option<&V>)) {
    for (key, was) in old {
        tell(Some(was), new.get(key));
    }
    for (_, is) in new.iter().filter(|(key, _)| !old.contains_key(key)) {
        tell(None, Some(is));
    }
}

#[derive(Default)]
struct List {
    changes: Vec<Change>,
    left_out: usize,
}

impl List {
    fn push(&mut self, text: String, widens: bool) {
        if self.changes.len() < CHANGES_MAX {
            self.changes.push(Change { text, widens });
        } else {
            self.left_out += 1;
        }
    }
    fn plain(&mut self, text: String) {
        self.push(text, false);
    }
    fn widens(&mut self, text: String) {
        self.push(text, true);
    }
    fn finish(mut self) -> Vec<Change> {
        if self.left_out > 0 {
            let text = format!("and {} more", self.left_out);
            self.changes.push(Change { text, widens: false });
        }
        if self.changes.is_empty() {
            self.changes.push(Change { text: "nothing that this report tells apart".into(), widens: false });
        }
        self.changes
    }
}
