//! Makes a failing plan small: leaves out whatever it fails without.
use crate::mutation::Mutation;
use crate::run::{Ran, run};
use crate::schedule::Plan;

/// What kind of failure it is: the words before the first colon.
fn kind(ran: &Ran) -> Option<&str> {
    ran.failure.as_deref().map(|f| f.split(':').next().unwrap_or(f))
}

/// The smallest plan found that fails in the same way, and how it ran. Stops after so many runs.
pub fn shrink(plan: &Plan, mutation: Mutation, runs_max: usize) -> (Plan, Ran) {
    let mut best = (plan.clone(), run(plan, mutation, false));
    let wanted = kind(&best.1).map(str::to_owned);
    if wanted.is_none() {
        return best;
    }
    let mut runs = 0;
    loop {
        let mut smaller = Vec::new();
        for i in (0..best.0.events.len()).rev() {
            let mut plan = best.0.clone();
            plan.events.remove(i);
            smaller.push(plan);
        }
        for lie in best.0.adversary.lies.iter().filter(|_| best.0.adversary.lies.len() > 1) {
            let mut plan = best.0.clone();
            plan.adversary.lies.remove(lie);
            smaller.push(plan);
        }
        if best.0.clients > 1 {
            let mut plan = best.0.clone();
            plan.clients = 1;
            smaller.push(plan);
        }
        if best.0.rogue {
            smaller.push(Plan { rogue: false, ..best.0.clone() });
        }
        if !best.0.adversary.hostile.is_empty() {
            let mut plan = best.0.clone();
            plan.adversary = Default::default();
            smaller.push(plan);
        }
        let mut found = None;
        for plan in smaller {
            if runs == runs_max {
                return best;
            }
            runs += 1;
            let ran = run(&plan, mutation, false);
            if kind(&ran) == wanted.as_deref() {
                found = Some((plan, ran));
                break;
            }
        }
        match found {
            Some(smaller) => best = smaller,
            None => return best,
        }
    }
}
