//! `quorate token`: mint, show and take back short-lived client tokens. Minting asks nobody: whether the issuer may is for the mesh
//! to say when the token is first used, and each time again.
use super::TrustArg;
use super::money::{decimal, duration_ms, micros};
use super::output::{Failure, Outcome, line, note, write};
use super::verify::date;
use crate::directory::now;
use crate::wire::random_id;
use crate::{Client, TrustFile};
use clap::Subcommand;
use quorate_core::crypto::PublicKey;
use quorate_core::ids::{ClientId, RouteId, Timestamp};
use quorate_core::token::{SignedToken, TOKEN_ROUTES_MAX, Token, TokenLimits};
use std::path::PathBuf;
use std::sync::Arc;

/// The mesh's clock may be behind the issuer's: a token begins a little earlier than now, within its lifetime.
const BACKDATED_MS_MAX: u64 = 5_000;

#[derive(Subcommand)]
pub(crate) enum TokenCommand {
    /// Mint a token for an agent or a job: a trust file for it and a key of its own
    Mint(MintArgs),
    /// Print what a token allows
    Show {
        /// Trust file of its holder
        file: PathBuf,
    },
    /// Take a token back, used or not; waits until the mesh refuses it
    Revoke {
        #[command(flatten)]
        trust: TrustArg,
        /// Trust file of its holder
        file: PathBuf,
    },
}

#[derive(clap::Args)]
pub(crate) struct MintArgs {
    #[command(flatten)]
    trust: TrustArg,
    /// Name of who it is for, for people
    #[arg(long)]
    subject: String,
    /// Routes it may use, comma-separated: some of the issuer's
    #[arg(long, value_delimiter = ',', required = true, value_name = "ROUTES")]
    routes: Vec<String>,
    /// Requests in all
    #[arg(long, value_name = "N")]
    requests: Option<u64>,
    /// Bytes in all, both directions
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u64>,
    /// Money in all, decimal
    #[arg(long, value_name = "AMOUNT", value_parser = micros)]
    money: Option<u64>,
    /// How long it lives, such as 15m
    #[arg(long, value_name = "DURATION", value_parser = duration_ms)]
    expires: u64,
    /// Trust file to write; its key goes beside it, as .key
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) async fn run(command: TokenCommand) -> Outcome {
    match command {
        TokenCommand::Mint(args) => mint(args),
        TokenCommand::Show { file } => {
            let token = token_in(&file)?;
            show(&token)
        }
        TokenCommand::Revoke { trust, file } => {
            let token = token_in(&file)?;
            let client = Client::connect(TrustFile::load(&trust.trust)?).await?;
            client.revoke_token(&token.token).await?;
            note(&format!("the token of {} is revoked", token.token.subject));
            Ok(())
        }
    }
}

fn mint(args: MintArgs) -> Outcome {
    let trust = TrustFile::load(&args.trust.trust)?;
    if trust.token.is_some() {
        return Err(Failure::new("a token's holder cannot mint tokens", "use the issuer's own trust file"));
    }
    let issuer = trust.load_key()?;
    let key_file = args.out.with_extension("key");
    for file in [&args.out, &key_file] {
        if file.exists() {
            return Err(Failure::new(format!("{} exists", file.display()), "name another file with --out"));
        }
    }
    let named =
        |e: quorate_core::ids::BadName| Failure::new(e.to_string(), "`quorate status --routes` lists routes");
    let routes: Vec<RouteId> =
        args.routes.iter().map(|r| RouteId::new(r.as_str()).map_err(named)).collect::<Outcome<_>>()?;
    if routes.len() > TOKEN_ROUTES_MAX {
        return Err(Failure::new(
            format!("{} routes, a token has at most {TOKEN_ROUTES_MAX}", routes.len()),
            "mint several tokens",
        ));
    }
    let subject = ClientId::new(args.subject.as_str())
        .map_err(|e| Failure::new(e.to_string(), "a name without spaces, such as agent-7"))?;
    crate::generate_client_key(&key_file)?;
    let holder = crate::trust::ClientKey::load(&key_file)?;
    let not_before = Timestamp(now().0.saturating_sub(BACKDATED_MS_MAX.min(args.expires / 10)));
    let token = Token {
        serial: random_id()?,
        issuer: trust.client.clone(),
        subject,
        key: PublicKey(holder.public()),
        routes,
        limits: TokenLimits { requests: args.requests, bytes: args.bytes, money: args.money },
        not_before,
        expires: not_before.plus_ms(args.expires),
    };
    let token = token.sign(trust.genesis, issuer.pair());
    let key_name = key_file.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    write(&args.out, &trust.text_for(&token, &key_name))?;
    note(&format!(
        "wrote {} and {}: hand both to {}, and keep a copy of the first to revoke it",
        args.out.display(),
        key_file.display(),
        token.token.subject
    ));
    line(&token.token.id(trust.genesis).to_string())
}

fn token_in(file: &std::path::Path) -> Outcome<Arc<SignedToken>> {
    let trust = TrustFile::load(file)?;
    trust.token.ok_or_else(|| {
        Failure::new(
            format!("{} holds no token", file.display()),
            "name a file that `quorate token mint` wrote",
        )
    })
}

fn show(token: &SignedToken) -> Outcome {
    let t = &token.token;
    let routes: Vec<&str> = t.routes.iter().map(RouteId::as_str).collect();
    line(&format!("for      {} by {}", t.subject, t.issuer))?;
    line(&format!("routes   {}", routes.join(", ")))?;
    let number = |n: Option<u64>| n.map_or("as its issuer".to_owned(), |n| n.to_string());
    line(&format!("requests {}", number(t.limits.requests)))?;
    line(&format!("bytes    {}", number(t.limits.bytes)))?;
    line(&format!("money    {}", t.limits.money.map_or("as its issuer".to_owned(), decimal)))?;
    line(&format!("from     {}", date(t.not_before)))?;
    line(&format!("to       {}", date(t.expires)))
}
