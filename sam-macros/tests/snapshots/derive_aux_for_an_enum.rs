// Input
//
//     #[aux(crate = crate::runtime)]
//     enum Phase {
//         Warm,
//         Hot(f64, Tensor),
//         Done { at: Instant },
//     }
//
// Output

#[automatically_derived]
impl crate::runtime::Aux for Phase {
    fn detached(self) -> crate::runtime::__private::candle_core::Result<Self> {
        ::core::result::Result::Ok(
            match self {
                Self::Warm {} => Self::Warm {},
                Self::Hot { 0: __sam_0, 1: __sam_1 } => {
                    Self::Hot {
                        0: <f64 as crate::runtime::Aux>::detached(__sam_0)?,
                        1: <Tensor as crate::runtime::Aux>::detached(__sam_1)?,
                    }
                }
                Self::Done { at: __sam_0 } => {
                    Self::Done {
                        at: <Instant as crate::runtime::Aux>::detached(__sam_0)?,
                    }
                }
            },
        )
    }
}
