//! What was used, by this node's state, as a message.
use quorate_core::ids::{ClientId, NodeId};
use quorate_core::state::{State, Usage, Window};
use quorate_proto::v1;

/// Everybody's figures, and the tokens of one issuer.
pub(crate) fn reply(me: NodeId, state: &State, issuer: Option<&ClientId>) -> v1::UsageReply {
    let tokens = issuer.into_iter().flat_map(|issuer| state.tokens_of(issuer));
    v1::UsageReply {
        node: me.0,
        tree_size: state.checkpoint().size.0,
        time_ms: state.time().0,
        clients: state.usage_by_client().map(|(id, u)| of(id.as_str(), &u)).collect(),
        teams: state.usage_by_team().map(|(id, u)| of(id.as_str(), &u)).collect(),
        routes: state.usage_by_route().map(|(id, u)| of(id.as_str(), &u)).collect(),
        days: state
            .usage_by_day()
            .iter()
            .map(|(day, used)| v1::DayUsage { day: *day, used: Some(window(used)) })
            .collect(),
        tokens: tokens
            .map(|(id, record)| v1::TokenUsage {
                token: id.0.to_vec().into(),
                subject: record.token.subject.to_string(),
                revoked: record.revoked,
                expires_ms: record.token.expires.0,
                used: Some(window(&record.used)),
            })
            .collect(),
    }
}

fn of(name: &str, usage: &Usage) -> v1::Usage {
    v1::Usage {
        name: name.to_owned(),
        minute: Some(window(&usage.minute)),
        day: Some(window(&usage.day)),
        month: Some(window(&usage.month)),
        in_flight: usage.in_flight,
    }
}

fn window(window: &Window) -> v1::WindowUsage {
    v1::WindowUsage {
        requests: window.requests,
        bytes: window.bytes,
        reserved_bytes: window.reserved_bytes,
        money: window.money,
        reserved_money: window.reserved_money,
        tokens_in: window.tokens.input,
        tokens_cached: window.tokens.cached,
        tokens_out: window.tokens.output,
    }
}
