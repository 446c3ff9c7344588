//! What runs a VM. Started by `ostler serve` for each run of each: nobody types this.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Before anything else: the roles start with as little as can be.
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("jail") => ostler::jail::run(arguments),
        Some("vmm") => ostler::vmm::run(),
        _ => {
            eprintln!("error: ostler-vmm is started by `ostler serve`, as `ostler-vmm jail` or `ostler-vmm vmm`");
            ExitCode::from(2)
        }
    }
}
