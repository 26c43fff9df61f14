//! Release manifests: which binaries a release consists of, which PCR values a machine shows that runs them, which packages are
//! in them, and where all that comes from. What reference values in a policy are taken from, so that "which requests met this
//! package" has an answer.
//!
//! ```text
//! NAME-VERSION.release.json        the manifest: digests of binaries, PCR values, the SBOM's digest, provenance
//! NAME-VERSION.release.json.sig    ssh-keygen -Y sign -n quorate-release
//! NAME-VERSION.cdx.json            the SBOM (CycloneDX 1.5, JSON), beside it
//! ```
//! A [`SignedRelease`] is what the files say. It becomes a [`Release`], which is the one thing that other modules take, when
//! somebody vouches for it: a policy that names its digest (m of n admins), an admin's signature, or that of a key which the
//! auditor names.
//!
//! **Refuses** an SBOM of another digest, names that lead out of the folder, and signatures in any other namespace: a policy's
//! signature is none of a manifest. **Leaves to the release process** whether the SBOM is true of the binaries; provenance says
//! who claims it. An SBOM made here from a `Cargo.lock` has all that the lock resolves for the package, build and test
//! dependencies included: too much rather than too little.
use crate::cli::{self, Exit, Failure, Outcome};
use quorate_attest::reference_values::ReferenceValues;
use quorate_core::crypto::{Hash, sha256};
use quorate_core::sshsig::{AdminKey, RELEASE_NAMESPACE, SshSigError, SshSignature};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Largest manifest: thousands of binaries.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Largest SBOM: a whole distribution's.
const SBOM_BYTES_MAX: u64 = 64 << 20;
/// Largest signature or key file.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// Largest binary that is measured.
const BINARY_BYTES_MAX: u64 = 4 << 30;
/// Most components of an SBOM, nested ones included.
const COMPONENTS_MAX: usize = 200_000;

/// The document that is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of this document; 1.
    pub format: u32,
    /// What is released.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Executables, as launchers and IMA measure them.
    pub binaries: Vec<Binary>,
    /// PCR values of a machine that runs this release, alternatives for each. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub pcrs: BTreeMap<String, BTreeSet<Hash>>,
    /// What is in it.
    pub sbom: SbomFile,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// An executable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    /// File name, for people.
    pub name: String,
    /// SHA-256 of the file.
    pub sha256: Hash,
}

/// An SBOM, by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SbomFile {
    /// Name of the file beside the manifest.
    pub file: String,
    /// SHA-256 of it.
    pub sha256: Hash,
}

/// Where a release comes from; claims of who signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// Repository or archive.
    pub source: String,
    /// Commit.
    pub revision: String,
    /// Compiler and its version. Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub toolchain: String,
    /// Who built it, where. Default empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub builder: String,
}

/// A package in a release.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Component {
    /// Name, with its group before it where it has one.
    pub name: String,
    /// Version; empty where the SBOM has none.
    pub version: String,
    /// Package URL; empty where the SBOM has none.
    pub purl: String,
}

/// A package, as people ask for it: `NAME`, `NAME@VERSION` or a package URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Package {
    text: String,
}

impl std::str::FromStr for Package {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim() {
            "" | "@" => Err("a package is NAME, NAME@VERSION or a package URL"),
            text => Ok(Self { text: text.to_owned() }),
        }
    }
}

impl std::fmt::Display for Package {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.text.escape_debug())
    }
}

impl Package {
    /// Whether a component is meant. Names and versions are compared as they stand: no ranges.
    pub fn is(&self, component: &Component) -> bool {
        if self.text.starts_with("pkg:") {
            let bare = |purl: &str| purl.split(['?', '#']).next().unwrap_or_default().to_owned();
            let (wanted, got) = (bare(&self.text), bare(&component.purl));
            let of_any_version = !wanted.rsplit('/').next().unwrap_or_default().contains('@');
            return got == wanted || of_any_version && got.rsplit_once('@').is_some_and(|(n, _)| n == wanted);
        }
        // The first character may be the @ of an npm scope.
        let split = self.text.rfind('@').filter(|at| *at > 0).and_then(|at| self.text.split_at_checked(at));
        match split {
            Some((name, version)) => {
                component.name == name && version.strip_prefix('@') == Some(component.version.as_str())
            }
            None => component.name == self.text,
        }
    }
}

/// What is wrong with a manifest or what it names.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Beyond any bound.
    #[error("{} is longer than {max} bytes", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// The bound.
        max: u64,
    },
    /// Not a manifest.
    #[error("{} is no release manifest", path.display())]
    NotAManifest {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Written by a newer program.
    #[error("release manifests of format {0} are not known, only 1")]
    Format(u32),
    /// A PCR list under something that is no index.
    #[error("{0:?} is not a PCR index from 0 to 23")]
    NotAPcr(String),
    /// A path where a name must be.
    #[error("the SBOM's name {0:?} is not that of a file beside the manifest")]
    SbomName(String),
    /// Another SBOM.
    #[error("the SBOM's SHA-256 is {got}, and the manifest names {expected}")]
    SbomDigest {
        /// What is signed.
        expected: Hash,
        /// The file's.
        got: Hash,
    },
    /// Not CycloneDX.
    #[error("the SBOM is no CycloneDX document")]
    NotAnSbom(#[source] serde_json::Error),
    /// JSON of another kind.
    #[error("the SBOM's bomFormat is not \"CycloneDX\"")]
    NotCycloneDx,
    /// Beyond any bound.
    #[error("the SBOM has more than {COMPONENTS_MAX} components")]
    TooManyComponents,
    /// A signature that is none over this manifest.
    #[error("the signature of the manifest is not good")]
    Signature(#[source] SshSigError),
    /// Nobody vouches for it.
    #[error(
        "nobody vouches for release {name} (manifest {digest}): no policy names it, and it is signed by {signer}"
    )]
    NotVouchedFor {
        /// Its name and version.
        name: String,
        /// Of the manifest.
        digest: Hash,
        /// Who signed.
        signer: &'static str,
    },
    /// Not a lock file.
    #[error("the lock file does not parse")]
    NotALock(#[source] Box<toml::de::Error>),
    /// The package is not in the lock file.
    #[error("the lock file has no package {0:?}")]
    NoSuchPackage(String),
}

/// What a release's files say; the signature, if there is one, is good.
#[derive(Debug, Clone)]
pub struct SignedRelease {
    digest: Hash,
    manifest: Manifest,
    components: Vec<Component>,
    signer: Option<AdminKey>,
}

/// Who vouches for a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Voucher {
    /// A policy in the log names the manifest's digest.
    Policy,
    /// This signer, by the name that the policy or the auditor has for the key.
    Signer(String),
}

/// Whom a manifest is believed from.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Keys and whose they are.
    pub keys: BTreeMap<AdminKey, String>,
    /// Manifests that policies name.
    pub manifests: BTreeSet<Hash>,
}

/// A release that somebody vouches for.
#[derive(Debug, Clone)]
pub struct Release {
    signed: SignedRelease,
    voucher: Voucher,
}

impl SignedRelease {
    /// Reads a manifest, its signature (`FILE.sig`, where there is one) and its SBOM.
    pub fn read(path: &Path) -> Result<Self, ManifestError> {
        let bytes = read(path, MANIFEST_BYTES_MAX)?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|source| ManifestError::NotAManifest { path: path.into(), source })?;
        if manifest.format != 1 {
            return Err(ManifestError::Format(manifest.format));
        }
        manifest.pcr_values()?;
        let signature = with_suffix(path, ".sig");
        let signer = match read(&signature, SMALL_BYTES_MAX) {
            Ok(pem) => {
                let signature = SshSignature::from_pem(&String::from_utf8_lossy(&pem));
                let signer = signature.and_then(|s| s.verify_in(RELEASE_NAMESPACE, &bytes));
                Some(signer.map_err(ManifestError::Signature)?)
            }
            Err(ManifestError::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let name = Path::new(&manifest.sbom.file);
        let odd = manifest.sbom.file.chars().any(char::is_control);
        if odd || name.file_name() != Some(name.as_os_str()) {
            return Err(ManifestError::SbomName(manifest.sbom.file));
        }
        let sbom = read(&path.with_file_name(name), SBOM_BYTES_MAX)?;
        let got = sha256(&sbom);
        if got != manifest.sbom.sha256 {
            return Err(ManifestError::SbomDigest { expected: manifest.sbom.sha256, got });
        }
        Ok(Self { digest: sha256(&bytes), components: components(&sbom)?, manifest, signer })
    }

    /// SHA-256 of the manifest: what a policy names.
    pub fn digest(&self) -> Hash {
        self.digest
    }
    /// What the document says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// Name and version.
    pub fn name(&self) -> String {
        format!("{} {}", self.manifest.name.escape_debug(), self.manifest.version.escape_debug())
    }
    /// Packages in it.
    pub fn components(&self) -> &[Component] {
        &self.components
    }

    /// A release, if somebody who is trusted vouches for it.
    pub fn vouch(self, trust: &Trust) -> Result<Release, ManifestError> {
        let voucher = match &self.signer {
            _ if trust.manifests.contains(&self.digest) => Some(Voucher::Policy),
            Some(key) => trust.keys.get(key).cloned().map(Voucher::Signer),
            None => None,
        };
        match voucher {
            Some(voucher) => Ok(Release { signed: self, voucher }),
            None => Err(ManifestError::NotVouchedFor {
                name: self.name(),
                digest: self.digest,
                signer: if self.signer.is_some() { "a key that is nobody's here" } else { "nobody" },
            }),
        }
    }
}

impl Release {
    /// What its files say.
    pub fn signed(&self) -> &SignedRelease {
        &self.signed
    }
    /// Who vouches for it.
    pub fn voucher(&self) -> &Voucher {
        &self.voucher
    }
}

impl Manifest {
    /// PCR values by index.
    pub fn pcr_values(&self) -> Result<BTreeMap<u8, BTreeSet<Hash>>, ManifestError> {
        let index = |text: &String| {
            let pcr = text.parse::<u8>().ok().filter(|pcr| *pcr < 24 && pcr.to_string() == *text);
            pcr.ok_or_else(|| ManifestError::NotAPcr(text.clone()))
        };
        self.pcrs.iter().map(|(pcr, values)| Ok((index(pcr)?, values.clone()))).collect()
    }

    /// What a policy would hold a machine to that runs this release: its PCR values, and where IMA is used its binaries.
    pub fn reference_values(&self, ima: bool) -> Result<ReferenceValues, ManifestError> {
        let pcrs = self.pcr_values()?.into_iter();
        Ok(ReferenceValues {
            pcrs: pcrs.map(|(pcr, values)| (pcr, values.iter().map(|v| v.0).collect())).collect(),
            ima: ima.then(|| self.binaries.iter().map(|b| b.sha256.0).collect()),
            firmware_versions: None,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bom {
    bom_format: String,
    #[serde(default)]
    metadata: BomMetadata,
    #[serde(default)]
    components: Vec<BomComponent>,
}

#[derive(Default, Deserialize)]
struct BomMetadata {
    component: Option<BomComponent>,
}

#[derive(Deserialize)]
struct BomComponent {
    #[serde(default)]
    group: String,
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    purl: String,
    #[serde(default)]
    components: Vec<BomComponent>,
}

/// All components of a CycloneDX document, the described one first.
fn components(sbom: &[u8]) -> Result<Vec<Component>, ManifestError> {
    let bom: Bom = serde_json::from_slice(sbom).map_err(ManifestError::NotAnSbom)?;
    if bom.bom_format != "CycloneDX" {
        return Err(ManifestError::NotCycloneDx);
    }
    let mut queue: VecDeque<BomComponent> =
        bom.metadata.component.into_iter().chain(bom.components).collect();
    let mut components = Vec::new();
    while let Some(next) = queue.pop_front() {
        if components.len() == COMPONENTS_MAX {
            return Err(ManifestError::TooManyComponents);
        }
        let BomComponent { group, name, version, purl, components: inner } = next;
        let name = if group.is_empty() { name } else { format!("{group}/{name}") };
        components.push(Component { name, version, purl });
        queue.extend(inner);
    }
    Ok(components)
}

#[derive(Deserialize)]
struct Lock {
    #[serde(default)]
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
    #[serde(default)]
    dependencies: Vec<String>,
}

impl LockedPackage {
    fn purl(&self) -> String {
        format!("pkg:cargo/{}@{}", self.name, self.version)
    }
    fn component(&self, kind: &str) -> serde_json::Value {
        let mut component = serde_json::json!({
            "type": kind, "name": self.name, "version": self.version, "purl": self.purl(), "bom-ref": self.purl(),
        });
        if let (Some(sum), Some(fields)) = (&self.checksum, component.as_object_mut()) {
            fields.insert("hashes".into(), serde_json::json!([{ "alg": "SHA-256", "content": sum }]));
        }
        component
    }
}

/// CycloneDX 1.5 of what a `Cargo.lock` resolves for a package. The same lock gives the same bytes.
pub fn sbom_of_lock(lock: &str, package: &str) -> Result<String, ManifestError> {
    let lock: Lock = toml::from_str(lock).map_err(|e| ManifestError::NotALock(Box::new(e)))?;
    // A dependency is `name`, or `name version` where several versions are locked, or both and a source.
    let find = |text: &str| {
        let mut parts = text.split(' ');
        let (name, version) = (parts.next(), parts.next());
        let fits =
            |p: &&LockedPackage| Some(p.name.as_str()) == name && version.is_none_or(|v| v == p.version);
        lock.package.iter().find(fits)
    };
    let root = find(package).ok_or_else(|| ManifestError::NoSuchPackage(package.to_owned()))?;
    let mut reached: BTreeMap<String, &LockedPackage> = BTreeMap::new();
    let mut queue = VecDeque::from([root]);
    while let Some(next) = queue.pop_front() {
        if reached.insert(next.purl(), next).is_none() {
            queue.extend(next.dependencies.iter().filter_map(|d| find(d)));
        }
    }
    let depends: Vec<_> = reached
        .iter()
        .map(|(purl, p)| {
            let on: BTreeSet<String> =
                p.dependencies.iter().filter_map(|d| find(d)).map(LockedPackage::purl).collect();
            serde_json::json!({ "ref": purl, "dependsOn": on })
        })
        .collect();
    let libraries: Vec<_> = reached
        .iter()
        .filter(|(purl, _)| **purl != root.purl())
        .map(|(_, p)| p.component("library"))
        .collect();
    let bom = serde_json::json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": { "component": root.component("application") },
        "components": libraries, "dependencies": depends,
    });
    Ok(format!("{bom:#}\n"))
}

/// Public keys from OpenSSH lines or an allowed-signers file, each under the name that stands with it.
pub fn keys(path: &Path) -> Result<BTreeMap<AdminKey, String>, Failure> {
    let bytes = read(path, SMALL_BYTES_MAX)?;
    let mut keys = BTreeMap::new();
    for line in String::from_utf8_lossy(&bytes).lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // allowed_signers (ssh-keygen, ALLOWED SIGNERS): principals, options, key; a public key file: key, comment.
        let from =
            ["ssh-ed25519 ", "sk-ssh-ed25519@openssh.com "].iter().filter_map(|kind| line.find(kind)).min();
        let (before, key) = line.split_at_checked(from.unwrap_or_default()).unwrap_or(("", line));
        let parsed = AdminKey::from_openssh(key).map_err(|e| {
            Failure::new(
                format!("{}: {e}", path.display()),
                "one key a line, as `ssh-keygen` writes public keys",
            )
        })?;
        let name = before.split_whitespace().next().or_else(|| key.split_whitespace().nth(2));
        let name = name.map_or_else(|| path.display().to_string(), str::to_owned);
        keys.insert(parsed, name);
    }
    Ok(keys)
}

fn read(path: &Path, max: u64) -> Result<Vec<u8>, ManifestError> {
    let failed = |source| ManifestError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(ManifestError::TooLong { path: path.into(), max });
    }
    Ok(bytes)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        let hint = match &error {
            ManifestError::Read { .. } => "the manifest, its .sig and its SBOM stand in one folder",
            ManifestError::NotVouchedFor { .. } => {
                "name a key that you trust: --signer FILE; or have the policy name the manifest"
            }
            ManifestError::Signature(_) => "sign it with `ssh-keygen -Y sign -n quorate-release -f KEY FILE`",
            ManifestError::SbomDigest { .. } => "fetch manifest and SBOM again from one release",
            _ => "",
        };
        Self::new(cli::chain(&error), hint)
    }
}

/// `manifest`'s arguments.
#[derive(Debug, clap::Args)]
pub struct ManifestArgs {
    #[command(subcommand)]
    command: ManifestCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ManifestCommand {
    /// Write the manifest of a release and its SBOM, to be signed with `ssh-keygen -Y sign -n quorate-release`
    Make(Box<MakeArgs>),
    /// Check a manifest, its signature and its SBOM, and print its digest
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct MakeArgs {
    /// What is released
    #[arg(long)]
    name: String,
    /// Its version
    #[arg(long)]
    version: String,
    /// An executable of the release; repeat for each
    #[arg(long = "binary", value_name = "FILE", required = true)]
    binaries: Vec<PathBuf>,
    /// A PCR value of machines that run it, INDEX=HEX; repeat for each
    #[arg(long = "pcr", value_name = "INDEX=HEX")]
    pcrs: Vec<String>,
    /// Cargo.lock to make the SBOM from
    #[arg(long, value_name = "FILE", required_unless_present = "sbom")]
    lock: Option<PathBuf>,
    /// Package in the lock file whose dependencies count; the release's name by default
    #[arg(long, requires = "lock")]
    package: Option<String>,
    /// A CycloneDX SBOM that is there already, in place of a lock file
    #[arg(long, value_name = "FILE", conflicts_with = "lock")]
    sbom: Option<PathBuf>,
    /// Repository or archive that it was built from
    #[arg(long)]
    source: String,
    /// Commit that it was built from
    #[arg(long)]
    revision: String,
    /// Compiler and its version
    #[arg(long, default_value = "")]
    toolchain: String,
    /// Who built it
    #[arg(long, default_value = "")]
    builder: String,
    /// Folder to write into
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// The manifest
    file: PathBuf,
    /// Public keys to believe, as `ssh-keygen` writes them or as an allowed-signers file
    #[arg(long = "signer", value_name = "FILE", required = true)]
    signers: Vec<PathBuf>,
    /// Write its reference values as TOML, for `quorate admin reference-values set --file`
    #[arg(long, value_name = "FILE")]
    reference_values: Option<PathBuf>,
    /// Let the reference values allow its binaries in IMA lists
    #[arg(long, requires = "reference_values")]
    ima: bool,
    /// JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: ManifestArgs) -> Outcome {
    match args.command {
        ManifestCommand::Make(args) => run_make(*args),
        ManifestCommand::Check(args) => run_check(args),
    }
}

fn run_make(args: MakeArgs) -> Outcome {
    let stem = format!("{}-{}", args.name, args.version);
    if Path::new(&stem).file_name() != Some(stem.as_ref()) {
        return Err(Failure::new(format!("{stem:?} cannot name a file"), "choose another name or version"));
    }
    let mut pcrs: BTreeMap<String, BTreeSet<Hash>> = BTreeMap::new();
    for text in &args.pcrs {
        let value = text.split_once('=').and_then(|(pcr, hex)| Some((pcr, hex.parse::<Hash>().ok()?)));
        let (pcr, value) = value.ok_or_else(|| Failure::new(format!("{text:?} is no INDEX=HEX"), ""))?;
        pcrs.entry(pcr.to_owned()).or_default().insert(value);
    }
    let sbom = match (&args.sbom, &args.lock) {
        (Some(sbom), _) => read(sbom, SBOM_BYTES_MAX)?,
        (None, Some(lock)) => {
            let lock = String::from_utf8_lossy(&read(lock, SBOM_BYTES_MAX)?).into_owned();
            sbom_of_lock(&lock, args.package.as_deref().unwrap_or(&args.name))?.into_bytes()
        }
        (None, None) => return Err(Failure::new("no SBOM", "name a --lock or an --sbom")),
    };
    components(&sbom)?;
    let file = format!("{stem}.cdx.json");
    let binaries = args.binaries.iter().map(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Binary { name, sha256: measure(path)? })
    });
    let manifest = Manifest {
        format: 1,
        binaries: binaries.collect::<Result<_, ManifestError>>()?,
        name: args.name,
        version: args.version,
        pcrs,
        sbom: SbomFile { sha256: sha256(&sbom), file: file.clone() },
        provenance: Provenance {
            source: args.source,
            revision: args.revision,
            toolchain: args.toolchain,
            builder: args.builder,
        },
    };
    manifest.pcr_values()?;
    let text = serde_json::to_string_pretty(&manifest)
        .map_err(|e| Failure::new(format!("cannot encode the manifest: {e}"), ""))?;
    let path = args.out.join(format!("{stem}.release.json"));
    save(&args.out.join(file), &sbom)?;
    save(&path, format!("{text}\n").as_bytes())?;
    cli::say(&format!(
        "wrote {0}\nsign it: ssh-keygen -Y sign -n {RELEASE_NAMESPACE} -f KEY {0}\n",
        path.display()
    ))?;
    Ok(Exit::Good)
}

fn run_check(args: CheckArgs) -> Outcome {
    let mut trust = Trust::default();
    for file in &args.signers {
        trust.keys.extend(keys(file)?);
    }
    let release = SignedRelease::read(&args.file)?.vouch(&trust)?;
    let (signed, manifest) = (release.signed(), release.signed().manifest());
    if let Some(out) = &args.reference_values {
        let text = toml::to_string(&manifest.reference_values(args.ima)?)
            .map_err(|e| Failure::new(format!("cannot encode the reference values: {e}"), ""))?;
        save(out, text.as_bytes())?;
    }
    if args.json {
        cli::say_json(&serde_json::json!({
            "digest": signed.digest(), "voucher": release.voucher(), "manifest": manifest,
            "components": signed.components(),
        }))?;
        return Ok(Exit::Good);
    }
    let by = match release.voucher() {
        Voucher::Policy => "a policy".into(),
        Voucher::Signer(name) => name.escape_debug().to_string(),
    };
    let mut text = format!("release       {}\nmanifest      {}\n", signed.name(), signed.digest());
    text.push_str(&format!("signed by     {by}\n"));
    for binary in &manifest.binaries {
        text.push_str(&format!("binary        {}  {}\n", binary.sha256, binary.name.escape_debug()));
    }
    text.push_str(&format!("packages      {}\n", signed.components().len()));
    text.push_str(&format!(
        "source        {:?} at {:?}\n",
        manifest.provenance.source, manifest.provenance.revision
    ));
    if let Some(out) = &args.reference_values {
        text.push_str(&format!(
            "\nwrote {0}; next: `quorate admin reference-values set --name NAME --file {0} --release {1}`\n",
            out.display(),
            signed.digest()
        ));
    }
    cli::say(&text)?;
    Ok(Exit::Good)
}

/// SHA-256 of a file as a launcher takes it.
fn measure(path: &Path) -> Result<Hash, ManifestError> {
    Ok(sha256(&read(path, BINARY_BYTES_MAX)?))
}

fn save(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(path, bytes)
        .map_err(|e| Failure::new(format!("cannot write {}: {e}", path.display()), "make the folder first"))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use quorate_core::testing::{key, ssh_line, ssh_sign, ssh_sign_in};

    pub(crate) fn trust(name: &str) -> Trust {
        let admin = AdminKey::from_openssh(&ssh_line(&key(name))).unwrap();
        Trust { keys: BTreeMap::from([(admin, name.to_owned())]), manifests: BTreeSet::new() }
    }

    fn pem(signature: &SshSignature) -> String {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&signature.0);
        let lines: Vec<_> = text.as_bytes().chunks(70).map(|l| std::str::from_utf8(l).unwrap()).collect();
        format!("-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n", lines.join("\n"))
    }

    /// A signed release in a folder, changed before it is signed.
    pub(crate) fn release(dir: &Path, edit: impl FnOnce(&mut Manifest)) -> PathBuf {
        let lock = "version = 4\n[[package]]\nname = \"app\"\nversion = \"1.0.0\"\ndependencies = [\"left-pad\", \"ssl 1.1.1\"]\n\
             [[package]]\nname = \"left-pad\"\nversion = \"0.3.0\"\nchecksum = \"aa\"\ndependencies = [\"ssl 3.0.0\"]\n\
             [[package]]\nname = \"ssl\"\nversion = \"1.1.1\"\n[[package]]\nname = \"ssl\"\nversion = \"3.0.0\"\n\
             [[package]]\nname = \"unused\"\nversion = \"9.0.0\"\n";
        let sbom = sbom_of_lock(lock, "app").unwrap();
        assert_eq!(sbom, sbom_of_lock(lock, "app").unwrap());
        std::fs::write(dir.join("app.cdx.json"), &sbom).unwrap();
        let mut manifest = Manifest {
            format: 1,
            name: "app".into(),
            version: "1.0.0".into(),
            binaries: vec![Binary { name: "app".into(), sha256: sha256(b"app") }],
            pcrs: BTreeMap::new(),
            sbom: SbomFile { file: "app.cdx.json".into(), sha256: sha256(sbom.as_bytes()) },
            provenance: Provenance {
                source: "https://example.com/app".into(),
                revision: "abc".into(),
                toolchain: String::new(),
                builder: String::new(),
            },
        };
        edit(&mut manifest);
        let path = dir.join("app.release.json");
        let bytes = serde_json::to_vec(&manifest).unwrap();
        std::fs::write(&path, &bytes).unwrap();
        let signature = ssh_sign_in(&key("releaser"), RELEASE_NAMESPACE, &bytes);
        std::fs::write(with_suffix(&path, ".sig"), pem(&signature)).unwrap();
        path
    }

    #[test]
    fn a_release_is_believed_from_who_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let path = release(dir.path(), |_| ());
        let signed = SignedRelease::read(&path).unwrap();
        let names: Vec<_> = signed.components().iter().map(|c| format!("{}@{}", c.name, c.version)).collect();
        assert_eq!(names, ["app@1.0.0", "left-pad@0.3.0", "ssl@1.1.1", "ssl@3.0.0"]);
        let good = signed.clone().vouch(&trust("releaser")).unwrap();
        assert_eq!(*good.voucher(), Voucher::Signer("releaser".into()));
        let other = signed.clone().vouch(&trust("somebody else")).unwrap_err();
        assert!(matches!(other, ManifestError::NotVouchedFor { .. }), "{other}");
        let named = Trust { manifests: BTreeSet::from([signed.digest()]), ..Trust::default() };
        assert_eq!(*signed.clone().vouch(&named).unwrap().voucher(), Voucher::Policy);
        std::fs::remove_file(with_suffix(&path, ".sig")).unwrap();
        let unsigned = SignedRelease::read(&path).unwrap();
        assert!(unsigned.clone().vouch(&trust("releaser")).is_err());
        assert!(unsigned.vouch(&named).is_ok(), "the policy's word is enough");
    }

    #[test]
    fn each_mutation_is_refused_for_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |edit: &dyn Fn(&mut Manifest), after: &dyn Fn(&Path)| {
            let path = release(dir.path(), edit);
            after(&path);
            SignedRelease::read(&path).unwrap_err()
        };
        let nothing: &dyn Fn(&mut Manifest) = &|_| ();
        let none: &dyn Fn(&Path) = &|_| ();
        let sign_as_policy = |path: &Path| {
            let bytes = std::fs::read(path).unwrap();
            std::fs::write(with_suffix(path, ".sig"), pem(&ssh_sign(&key("releaser"), &bytes))).unwrap();
        };
        let append = |path: &Path| {
            let bytes = [std::fs::read(path).unwrap(), b" ".to_vec()].concat();
            std::fs::write(path, bytes).unwrap();
        };
        let other_sbom = |path: &Path| {
            let file = path.with_file_name("app.cdx.json");
            std::fs::write(&file, std::fs::read_to_string(&file).unwrap().replace("1.1.1", "1.1.2")).unwrap();
        };
        use ManifestError as E;
        assert!(matches!(
            refused(nothing, &sign_as_policy),
            E::Signature(SshSigError::WrongNamespace(RELEASE_NAMESPACE))
        ));
        assert!(matches!(refused(nothing, &append), E::Signature(SshSigError::BadSignature)));
        assert!(matches!(refused(nothing, &other_sbom), E::SbomDigest { .. }));
        assert!(matches!(refused(&|m| m.format = 2, none), E::Format(2)));
        assert!(matches!(refused(&|m| m.sbom.file = "../app.cdx.json".into(), none), E::SbomName(_)));
        assert!(matches!(refused(&|m| m.sbom.file = "/etc/passwd".into(), none), E::SbomName(_)));
        assert!(matches!(refused(&|m| m.sbom.file = "\u{1b}[2J.json".into(), none), E::SbomName(_)));
        let bad_pcr = |m: &mut Manifest| drop(m.pcrs.insert("04".into(), BTreeSet::new()));
        assert!(matches!(refused(&bad_pcr, none), E::NotAPcr(_)));
    }

    #[test]
    fn packages_are_found_as_people_write_them() {
        let component = |name: &str, version: &str, purl: &str| Component {
            name: name.into(),
            version: version.into(),
            purl: purl.into(),
        };
        let ssl = component("openssl", "3.0.0", "pkg:cargo/openssl@3.0.0?arch=x");
        let scoped = component("@scope/x", "1.2", "");
        for (text, component, expected) in [
            ("openssl", &ssl, true),
            ("openssl@3.0.0", &ssl, true),
            ("openssl@3.0", &ssl, false),
            ("openssl-sys", &ssl, false),
            ("pkg:cargo/openssl@3.0.0", &ssl, true),
            ("pkg:cargo/openssl", &ssl, true),
            ("pkg:npm/openssl@3.0.0", &ssl, false),
            ("@scope/x", &scoped, true),
            ("@scope/x@1.2", &scoped, true),
            ("@scope/x@1.3", &scoped, false),
        ] {
            assert_eq!(text.parse::<Package>().unwrap().is(component), expected, "{text}");
        }
    }

    #[test]
    fn ssh_keygen_signs_what_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = release(dir.path(), |_| ());
        std::fs::remove_file(with_suffix(&path, ".sig")).unwrap();
        let run = |args: &[&str]| {
            let done = std::process::Command::new("ssh-keygen").args(args).current_dir(dir.path()).output();
            done.map(|d| assert!(d.status.success(), "{d:?}"))
        };
        if let Err(e) = run(&["-q", "-t", "ed25519", "-N", "", "-C", "alice@example.com", "-f", "key"]) {
            eprintln!("SKIPPED ssh_keygen_signs_what_is_believed: no ssh-keygen here: {e}");
            return;
        }
        run(&["-Y", "sign", "-n", RELEASE_NAMESPACE, "-f", "key", "app.release.json"]).unwrap();
        let keys = keys(&dir.path().join("key.pub")).unwrap();
        assert_eq!(keys.values().next().unwrap(), "alice@example.com");
        let trust = Trust { keys, ..Trust::default() };
        assert!(SignedRelease::read(&path).unwrap().vouch(&trust).is_ok());
    }

    #[test]
    fn what_is_made_and_signed_checks() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("quorated"), b"a binary").unwrap();
        std::fs::write(at("pub"), ssh_line(&key("releaser"))).unwrap();
        run_make(MakeArgs {
            name: "quorated".into(),
            version: "0.1.0".into(),
            binaries: vec![at("quorated")],
            pcrs: vec![format!("11={}", Hash([3; 32]))],
            lock: Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock").into()),
            package: None,
            sbom: None,
            source: "https://example.com/quorate".into(),
            revision: "abc".into(),
            toolchain: "rustc 1.95".into(),
            builder: String::new(),
            out: dir.path().into(),
        })
        .unwrap();
        let file = at("quorated-0.1.0.release.json");
        let signature = ssh_sign_in(&key("releaser"), RELEASE_NAMESPACE, &std::fs::read(&file).unwrap());
        std::fs::write(with_suffix(&file, ".sig"), pem(&signature)).unwrap();
        let signed = SignedRelease::read(&file).unwrap();
        assert_eq!(signed.manifest().binaries[0].sha256, sha256(b"a binary"));
        assert!(signed.components().iter().any(|c| c.purl.starts_with("pkg:cargo/rustls@")));
        let args = CheckArgs {
            file: file.clone(),
            signers: vec![at("pub")],
            reference_values: Some(at("values.toml")),
            ima: true,
            json: false,
        };
        assert_eq!(run_check(args), Ok(Exit::Good));
        let values: ReferenceValues =
            toml::from_str(&std::fs::read_to_string(at("values.toml")).unwrap()).unwrap();
        assert_eq!(values.pcrs, BTreeMap::from([(11, vec![[3; 32]])]));
        assert_eq!(values.ima, Some(BTreeSet::from([sha256(b"a binary").0])));
    }

    #[test]
    fn our_own_lock_file_makes_an_sbom() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
        let sbom = sbom_of_lock(&lock, "quorated").unwrap();
        let components = components(sbom.as_bytes()).unwrap();
        let has = |name: &str| components.iter().any(|c| c.name == name);
        assert!(has("quorated") && has("rustls") && has("quorate-core"));
        assert!(!has("indicatif"), "what only the auditor uses");
    }
}
