//! The allocator of the programs.

pub use mimalloc::MiMalloc;

/// Makes mimalloc the allocator of a program: the system's allocator returns every large buffer to the system and requests
/// it anew. A library leaves this choice to the program.
#[macro_export]
macro_rules! use_mimalloc {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::cli::allocator::MiMalloc = $crate::cli::allocator::MiMalloc;
    };
}
