//! A mesh of real processes: nodes, their TPMs, and the provider behind them.

use crate::provider::DemoProvider;
use crate::tpm::SoftTpm;
use crate::workdir::Workdir;

/// The surroundings of a mesh. Fields drop in order: the provider, then the TPMs, then the folder.
pub struct Cluster {
    /// The provider.
    pub provider: DemoProvider,
    /// One TPM for each node.
    pub tpms: Vec<SoftTpm>,
    /// The folder of all of them.
    pub work: Workdir,
}

impl Cluster {
    /// Starts a provider and `nodes` TPMs, all powered on.
    pub fn surroundings(name: &str, nodes: usize, provider_flags: &[&str]) -> anyhow::Result<Self> {
        let work = Workdir::new(name)?;
        let provider = DemoProvider::start(&work, "provider", provider_flags)?;
        let mut tpms = Vec::with_capacity(nodes);
        for node in 1..=nodes {
            let tpm = SoftTpm::set_up(&work, &format!("node-{node}"))?;
            tpm.start()?;
            tpms.push(tpm);
        }
        Ok(Self { provider, tpms, work })
    }

    /// The test has passed: everything ends, and the folder goes.
    pub fn passed(self) {
        let Self { provider, tpms, work } = self;
        drop((provider, tpms));
        work.passed();
    }
}
