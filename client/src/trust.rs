//! The trust file: all that a client believes before it has checked anything, and the client's own key.
//!
//! ```toml
//! genesis = "9f86d0…"                  # hex SHA-256 of policy version 1: the cluster's identity
//! nodes = ["node-1.example:7101"]      # where to ask first; who answers is proven, not assumed
//! client = "team-a"                    # the name of our grant in the policy
//! key = "client.key"                   # PKCS#8 PEM, Ed25519, mode 0600; relative to this file
//! freshness_ms = 90000                 # how far the certified state may be from our clock
//! token = "…"                          # a short-lived token: then `client` is its issuer, and `key` the token's own
//! ```
use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use quorate_core::crypto::Hash;
use quorate_core::ids::{ClientId, TokenId};
use quorate_core::token::SignedToken;
use quorate_transport::{Address, AddressError, Identity, IdentityError};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroize;

/// Largest trust file.
const TRUST_BYTES_MAX: u64 = 64 * 1024;
/// Most nodes named.
const NODES_MAX: usize = 32;
/// Default of `freshness_ms`.
pub const FRESHNESS_MS: u64 = 90_000;

/// Why a trust file or key is unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Cannot be read.
    #[error("{}: cannot be read", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not the TOML expected.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The genesis digest.
    #[error("genesis is 64 hex digits")]
    Genesis,
    /// A node's address.
    #[error("node {address:?}")]
    Node {
        /// As written.
        address: String,
        /// What is wrong.
        source: AddressError,
    },
    /// None, or too many.
    #[error("nodes names {0} addresses; 1 to {NODES_MAX} are possible")]
    Nodes(usize),
    /// The client's name.
    #[error("client {0:?} is not a name")]
    Client(String),
    /// The token.
    #[error("the token is not one of this client")]
    Token,
    /// The key file.
    #[error("the client key cannot be used")]
    Key(#[from] IdentityError),
    /// The key is not usable for signing.
    #[error("{}: not an Ed25519 key in PKCS#8 PEM", .0.display())]
    KeyForm(PathBuf),
}

impl TrustError {
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { .. } => "name the file with --trust or QUORATE_TRUST; your admin hands it out",
            Self::Syntax { .. } | Self::Genesis | Self::Node { .. } | Self::Nodes(_) | Self::Client(_) => {
                "compare the trust file with the one your admin handed out"
            }
            Self::Token => "ask its issuer for another: `quorate token mint`",
            Self::Key(source) => source.hint(),
            Self::KeyForm(_) => "make a key with `quorate keygen` and have an admin grant it",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    genesis: String,
    nodes: Vec<String>,
    client: String,
    key: PathBuf,
    #[serde(default = "freshness")]
    freshness_ms: u64,
    #[serde(default)]
    token: Option<String>,
}

fn freshness() -> u64 {
    FRESHNESS_MS
}

fn token_of(text: &str, client: &ClientId) -> Result<Arc<SignedToken>, TrustError> {
    let bytes = BASE64.decode(text).map_err(|_| TrustError::Token)?;
    let token: SignedToken = borsh::from_slice(&bytes).map_err(|_| TrustError::Token)?;
    if token.token.issuer == *client { Ok(Arc::new(token)) } else { Err(TrustError::Token) }
}

/// A checked trust file. Holds no secret: the key is loaded by [`TrustFile::load_key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFile {
    /// Digest of policy version 1.
    pub genesis: Hash,
    /// Where to ask first.
    pub nodes: Vec<Address>,
    /// Our name in the policy.
    pub client: ClientId,
    /// Path of the key file.
    pub key: PathBuf,
    /// Bound on the certified state's distance from our clock, ms.
    pub freshness_ms: u64,
    /// The token that [`Self::key`] belongs to; `None` for a client of its own.
    pub token: Option<Arc<SignedToken>>,
}

impl TrustFile {
    /// Reads and checks a trust file; relative paths in it are relative to it.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        let failed = |source| TrustError::Read { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > TRUST_BYTES_MAX {
            return Err(TrustError::Syntax {
                path: path.to_owned(),
                message: format!("{length} bytes are too many"),
            });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text, path)
    }

    /// Checks the text of a trust file that stands at `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, TrustError> {
        let document: Document = toml::from_str(text)
            .map_err(|e| TrustError::Syntax { path: path.to_owned(), message: e.message().to_owned() })?;
        let genesis = document.genesis.parse().map_err(|_| TrustError::Genesis)?;
        if document.nodes.is_empty() || document.nodes.len() > NODES_MAX {
            return Err(TrustError::Nodes(document.nodes.len()));
        }
        let nodes = document
            .nodes
            .iter()
            .map(|n| n.parse().map_err(|source| TrustError::Node { address: n.clone(), source }))
            .collect::<Result<_, _>>()?;
        let client =
            ClientId::new(document.client.as_str()).map_err(|_| TrustError::Client(document.client))?;
        let token = document.token.as_deref().map(|t| token_of(t, &client)).transpose()?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(Self {
            genesis,
            nodes,
            client,
            key: folder.join(document.key),
            freshness_ms: document.freshness_ms,
            token,
        })
    }

    /// What stands for the token in commands.
    pub fn token_id(&self) -> Option<TokenId> {
        self.token.as_ref().map(|t| t.token.id(self.genesis))
    }

    /// The text of a trust file for a token's holder, whose key is in the file of that name beside it.
    pub fn text_for(&self, token: &SignedToken, key: &str) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|n| format!("{:?}", n.to_string())).collect();
        format!(
            "genesis = \"{}\"\nnodes = [{}]\nclient = \"{}\"\nkey = {key:?}\nfreshness_ms = {}\ntoken = \"{}\"\n",
            self.genesis,
            nodes.join(", "),
            token.token.issuer,
            self.freshness_ms,
            BASE64.encode(quorate_core::crypto::encode(token)),
        )
    }

    /// Loads the client's key.
    pub fn load_key(&self) -> Result<ClientKey, TrustError> {
        ClientKey::load(&self.key)
    }
}

/// The client's Ed25519 key: proves who opens a connection, and signs each request. No `Debug`.
#[derive(Clone)]
pub struct ClientKey {
    identity: Identity,
    pair: Arc<Ed25519KeyPair>,
}

impl ClientKey {
    /// Loads a PKCS#8 PEM file that other users cannot read.
    pub fn load(path: &Path) -> Result<Self, TrustError> {
        // Checks owner-only permissions, size and form.
        let identity = Identity::load(path)?;
        let form = || TrustError::KeyForm(path.to_owned());
        let mut der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|_| form())?;
        let pair = Ed25519KeyPair::from_pkcs8(der.secret_pkcs8_der());
        der.zeroize();
        let key = Self { identity, pair: Arc::new(pair.map_err(|_| form())?) };
        if quorate_core::crypto::public_key(&key.pair).0 == *key.identity.public().as_bytes() {
            Ok(key)
        } else {
            Err(form())
        }
    }

    /// The public half, base64, as the policy lists it.
    pub fn public_base64(&self) -> String {
        BASE64.encode(self.identity.public().as_bytes())
    }

    pub(crate) fn public(&self) -> [u8; 32] {
        *self.identity.public().as_bytes()
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }
}

/// Makes a new client key in a new file (mode 0600) and gives its public half in base64, for the policy.
pub fn generate_client_key(path: &Path) -> Result<String, TrustError> {
    let identity = Identity::create(path)?;
    Ok(BASE64.encode(identity.public().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(genesis: &str, nodes: &str, client: &str) -> String {
        format!("genesis = \"{genesis}\"\nnodes = {nodes}\nclient = \"{client}\"\nkey = \"client.key\"\n")
    }

    #[test]
    fn a_good_file_parses_and_its_key_path_is_relative_to_it() {
        let genesis = "ab".repeat(32);
        let trust = TrustFile::parse(
            &text(&genesis, "[\"127.0.0.1:7101\"]", "team-a"),
            Path::new("/etc/q/trust.toml"),
        )
        .unwrap();
        assert_eq!(trust.key, Path::new("/etc/q/client.key"));
        assert_eq!((trust.genesis.0, trust.freshness_ms), ([0xab; 32], 90_000));
    }

    #[test]
    fn each_mistake_has_its_error() {
        let good = "ab".repeat(32);
        let parse = |t: &str| TrustFile::parse(t, Path::new("trust.toml")).unwrap_err();
        assert!(matches!(parse(&text("00", "[\"a:1\"]", "c")), TrustError::Genesis));
        assert!(matches!(parse(&text(&good, "[]", "c")), TrustError::Nodes(0)));
        assert!(matches!(parse(&text(&good, "[\"a\"]", "c")), TrustError::Node { .. }));
        assert!(matches!(parse(&text(&good, "[\"a:1\"]", "a b")), TrustError::Client(_)));
        assert!(matches!(parse("other = 1"), TrustError::Syntax { .. }));
    }

    #[test]
    fn a_generated_key_loads_and_one_readable_by_others_does_not() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.key");
        let public = generate_client_key(&path).unwrap();
        assert_eq!(ClientKey::load(&path).ok().unwrap().public_base64(), public);
        assert!(generate_client_key(&path).is_err(), "never overwrites");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            ClientKey::load(&path).err().unwrap(),
            TrustError::Key(IdentityError::Exposed { .. })
        ));
    }
}
