//! Probing a route with a random key of the same shape, straight from the admin's machine, before a key is split for it: is
//! the provider reachable with the one cipher suite that a split key needs, does it ask for a key at all, and does it keep keys
//! out of its answers? Some repeat a wrong key in the error; relay and client alike would read that.
//!
//! What goes out is what the mesh will send: the route's own head template, in three records around the key.
use super::shape::{ECHO_BYTES, echoes};
use crate::cli::output::{Failure, Outcome, note, printable};
use crate::error::chain;
use crate::request::{Method, Request, Target};
use crate::wire::{DirectAnswer, danger_converse};
use crate::{Error, head_template};
use quorate_core::policy::{CredentialDocument, CredentialScheme, RouteDocument};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// The requests that say whether a key is good, cheapest first: the list of models, and a body that no API accepts.
pub(crate) fn requests(route: &RouteDocument) -> Vec<Request> {
    let target = || Target::Route(route.name.clone());
    let exact = || route.paths.iter().filter(|p| !p.ends_with('*'));
    let lists = |path: &&String| path.trim_end_matches('/').rsplit('/').next() == Some("models");
    let list = exact().find(lists).map(|path| Request::get(target(), path.as_str()));
    let ask = exact().find(|p| !lists(p)).map(|path| Request::post_json(target(), path.as_str(), "{}"));
    let mut requests: Vec<Request> = list.into_iter().chain(ask).collect();
    if route.dialect == "anthropic" {
        let version = || ("anthropic-version".to_owned(), "2023-06-01".to_owned());
        requests.iter_mut().for_each(|r| r.headers.push(version()));
    }
    requests
}

/// One request with this key, without the mesh.
pub(crate) async fn ask(
    route: &RouteDocument,
    scheme: CredentialScheme,
    public_prefix: &str,
    secret: &[u8],
    request: &Request,
) -> Result<DirectAnswer, Error> {
    let secret_bytes = u16::try_from(secret.len()).unwrap_or(u16::MAX);
    let shape = CredentialDocument::new(scheme, public_prefix, secret_bytes, 1, &BTreeMap::new());
    let keyed = RouteDocument { credential: Some(shape), ..route.clone() };
    let head = request.head();
    let parts = head_template(&keyed)?.serialise(&head).map_err(|e| Error::Head(e.into()))?;
    let mut end = parts.two().unwrap_or_default().to_vec();
    end.extend_from_slice(&request.body);
    danger_converse(route, &[parts.one(), secret, &end]).await
}

/// Probes a route; the result is one line for people.
pub(crate) async fn probe(
    route: &RouteDocument,
    scheme: CredentialScheme,
    public_prefix: &str,
    twin: &Zeroizing<Vec<u8>>,
    accept_echo: bool,
) -> Outcome<String> {
    let requests = requests(route);
    let mut accepted = None;
    for request in &requests {
        let answer = ask(route, scheme, public_prefix, twin, request).await.map_err(|e| Failure {
            message: format!("the probe of {}:{} failed: {}", route.host, route.port, chain(&e)),
            hints: vec![
                e.hint().to_owned(),
                "where only the nodes can reach the provider, skip this with --no-probe and use `credential check` once the change is in force".into(),
            ],
        })?;
        let status = answer.status;
        let what = format!("{} {}{}", request.method.as_str(), route.base_path, request.path);
        if echoes(&answer.raw, twin) || echoes(&answer.body, twin) {
            if !accept_echo {
                return Err(Failure::new(
                    format!(
                        "{what}: the answer ({status}) repeats {ECHO_BYTES} or more bytes of the key it was sent"
                    ),
                    "whoever gets an error answer would read parts of the key: use another provider or path, or accept that with --accept-echo",
                ));
            }
            note(&format!("{what}: the answer repeats parts of the key; accepted, as you said"));
        }
        match status {
            401 | 403 => return Ok(format!("{what} with a random key: {status}, as it should be")),
            400 => {
                return Ok(format!(
                    "{what} with a random key: 400, as some providers refuse keys (or the request; `credential check` will tell)"
                ));
            }
            // Some list their models to everybody.
            200..=299 if request.method == Method::Get => accepted = Some(what),
            200..=299 => {
                return Err(Failure::new(
                    format!("{what}: the provider accepted a random key ({status})"),
                    "the route needs no credential, or --scheme is not the provider's: then it did not see the key",
                ));
            }
            _ => {
                let said: String =
                    printable(&String::from_utf8_lossy(&answer.body)).chars().take(200).collect();
                return Err(Failure::new(
                    format!("{what} with a random key: {status} says nothing of keys: {said}"),
                    "check host, path and dialect of the route and try again; --no-probe goes on without",
                ));
            }
        }
    }
    match accepted {
        Some(what) => Err(Failure::new(
            format!(
                "{what}: the provider lists models without a key, and the route has no other exact path to try"
            ),
            "skip this with --no-probe",
        )),
        None => Err(Failure::new(
            "the route has no exact path to try",
            "add one (`--path /v1/models`), or skip this with --no-probe",
        )),
    }
}
