//! The host's interfaces in Rust, generated from `wit/`, which carries the documentation. A world for each hook, so that a
//! component exports those that it serves and no others.
#![allow(
    missing_docs,
    unsafe_code,
    unreachable_pub,
    clippy::missing_safety_doc,
    reason = "generated from wit/, which carries the documentation"
)]

/// What every plugin imports and exports.
pub mod base {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-base {
            import ostler:policy/types@0.1.0;
            import ostler:policy/log@0.1.0;
            import ostler:policy/settings@0.1.0;
            export ostler:policy/lifecycle@0.1.0;
        }",
        world: "ostler:sdk/sdk-base",
        additional_derives: [PartialEq],
        generate_unused_types: true,
        pub_export_macro: true,
        generate_all,
    });
}

/// What a plugin may import that remembers.
pub mod kv {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-kv { import ostler:policy/kv@0.1.0; }",
        world: "ostler:sdk/sdk-kv",
        additional_derives: [PartialEq],
        generate_all,
    });
}

/// What a plugin may import that sees what the tenant has.
pub mod inventory {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-inventory { import ostler:policy/inventory@0.1.0; }",
        world: "ostler:sdk/sdk-inventory",
        additional_derives: [PartialEq],
        generate_all,
    });
}

/// What a plugin may import that sees labels and images of the VM.
pub mod subject {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-subject { import ostler:policy/subject@0.1.0; }",
        world: "ostler:sdk/sdk-subject",
        additional_derives: [PartialEq],
        generate_all,
    });
}

/// The hook `admit`.
pub mod admit {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-admit { export ostler:policy/admit-hook@0.1.0; }",
        world: "ostler:sdk/sdk-admit",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `attach`.
pub mod attach {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-attach { export ostler:policy/attach-hook@0.1.0; }",
        world: "ostler:sdk/sdk-attach",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `detach`.
pub mod detach {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-detach { export ostler:policy/detach-hook@0.1.0; }",
        world: "ostler:sdk/sdk-detach",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `observe`.
pub mod observe {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-observe { export ostler:policy/observe-hook@0.1.0; }",
        world: "ostler:sdk/sdk-observe",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `place`.
pub mod place {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-place { export ostler:policy/place-hook@0.1.0; }",
        world: "ostler:sdk/sdk-place",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `select-vf`.
pub mod select_vf {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-select-vf { export ostler:policy/select-vf-hook@0.1.0; }",
        world: "ostler:sdk/sdk-select-vf",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}

/// The hook `select-nvme`.
pub mod select_nvme {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "package ostler:sdk; world sdk-select-nvme { export ostler:policy/select-nvme-hook@0.1.0; }",
        world: "ostler:sdk/sdk-select-nvme",
        with: { "ostler:policy/types@0.1.0": crate::host::base::ostler::policy::types },
        additional_derives: [PartialEq],
        pub_export_macro: true,
        generate_all,
    });
}
