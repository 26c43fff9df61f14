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
#[command(
    after_help = "Example:\n  quorate token mint --trust trust.toml --subject agent-7 --routes openai --money 0.50 --expires 15m --out agent.toml\nNo node is asked. What the token uses is charged to its issuer and its team as well; an issuer that is revoked, narrowed or given another key takes its tokens along."
)]
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &std::path::Path, out: &str) -> MintArgs {
        MintArgs {
            trust: TrustArg { trust: dir.join("issuer.toml") },
            subject: "agent-7".into(),
            routes: vec!["a".into(), "b".into()],
            requests: None,
            bytes: Some(1000),
            money: Some(500_000),
            expires: 900_000,
            out: dir.join(out),
        }
    }

    fn issuer(dir: &std::path::Path) -> TrustFile {
        crate::generate_client_key(&dir.join("issuer.key")).unwrap();
        let genesis = "ab".repeat(32);
        let text = format!(
            "genesis = \"{genesis}\"\nnodes = [\"127.0.0.1:7101\"]\nclient = \"team-a\"\nkey = \"issuer.key\"\n"
        );
        std::fs::write(dir.join("issuer.toml"), text).unwrap();
        TrustFile::load(&dir.join("issuer.toml")).unwrap()
    }

    #[test]
    fn a_token_is_minted_offline_for_a_key_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let issuer = issuer(dir.path());
        mint(args(dir.path(), "agent.toml")).unwrap();
        let holder = TrustFile::load(&dir.path().join("agent.toml")).unwrap();
        assert_eq!(
            (&holder.genesis, &holder.nodes, &holder.client),
            (&issuer.genesis, &issuer.nodes, &issuer.client)
        );
        let signed = holder.token.clone().unwrap();
        let key = issuer.load_key().unwrap();
        assert!(signed.is_by(issuer.genesis, &PublicKey(key.public())));
        assert!(
            !signed.is_by(quorate_core::crypto::Hash([0; 32]), &PublicKey(key.public())),
            "of this cluster only"
        );
        assert_eq!(signed.token.key.0, holder.load_key().unwrap().public());
        assert_ne!(holder.load_key().unwrap().public(), key.public());
        let t = &signed.token;
        assert_eq!(
            (t.lifetime_ms(), t.limits.money, t.limits.bytes, t.limits.requests),
            (900_000, Some(500_000), Some(1000), None)
        );
        assert!(t.not_before <= now() && t.expires > now());
        assert_eq!(t.routes.iter().map(RouteId::as_str).collect::<Vec<_>>(), ["a", "b"]);
        // Another is another token, and nothing is overwritten.
        assert!(mint(args(dir.path(), "agent.toml")).is_err());
        mint(args(dir.path(), "other.toml")).unwrap();
        assert_ne!(TrustFile::load(&dir.path().join("other.toml")).unwrap().token_id(), holder.token_id());
        // A holder mints nothing.
        let again = MintArgs {
            trust: TrustArg { trust: dir.path().join("agent.toml") },
            ..args(dir.path(), "third.toml")
        };
        assert!(mint(again).unwrap_err().message.contains("holder"));
        assert!(token_in(&dir.path().join("issuer.toml")).is_err());
    }

    #[test]
    fn a_token_of_another_issuer_does_not_load() {
        let dir = tempfile::tempdir().unwrap();
        issuer(dir.path());
        mint(args(dir.path(), "agent.toml")).unwrap();
        let path = dir.path().join("agent.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let parse = |text: &str| TrustFile::parse(text, &path);
        assert!(parse(&text).is_ok());
        let other = parse(&text.replace("team-a", "team-b"));
        assert!(matches!(other, Err(crate::trust::TrustError::Token)));
        let cut = parse(&text.replace("token = \"", "token = \"AAAA"));
        assert!(matches!(cut, Err(crate::trust::TrustError::Token)));
    }
}
