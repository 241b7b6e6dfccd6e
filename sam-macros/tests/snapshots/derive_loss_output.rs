// Input
//
//     pub struct Step<A> {
//         logits: Tensor,
//         loss: Tensor,
//         more: A,
//     }
//
// Output

#[automatically_derived]
impl<A: ::sam_runtime::Aux> ::sam_runtime::LossOutput for Step<A> {
    fn loss(&self) -> &::sam_runtime::__private::candle_core::Tensor {
        &self.loss
    }
    fn into_detached(self) -> ::sam_runtime::__private::candle_core::Result<Self> {
        ::core::result::Result::Ok(
            match self {
                Self { logits: __sam_0, loss: __sam_1, more: __sam_2 } => {
                    Self {
                        logits: <Tensor as ::sam_runtime::Aux>::detached(__sam_0)?,
                        loss: <Tensor as ::sam_runtime::LossOutput>::into_detached(
                            __sam_1,
                        )?,
                        more: <A as ::sam_runtime::Aux>::detached(__sam_2)?,
                    }
                }
            },
        )
    }
    fn with_loss(
        self,
        __sam_loss: ::sam_runtime::__private::candle_core::Tensor,
    ) -> Self {
        Self { loss: __sam_loss, ..self }
    }
    fn join_shards(
        __sam_parts: ::std::vec::Vec<(::core::primitive::f64, Self)>,
    ) -> ::sam_runtime::__private::candle_core::Result<Self> {
        let mut __sam_0 = ::std::vec::Vec::new();
        let mut __sam_1 = ::std::vec::Vec::new();
        let mut __sam_2 = ::std::vec::Vec::new();
        for (__sam_share, __sam_part) in __sam_parts {
            let Self {
                logits: __sam_value_0,
                loss: __sam_value_1,
                more: __sam_value_2,
            } = __sam_part;
            ::std::vec::Vec::push(&mut __sam_0, (__sam_share, __sam_value_0));
            ::std::vec::Vec::push(&mut __sam_1, (__sam_share, __sam_value_1));
            ::std::vec::Vec::push(&mut __sam_2, (__sam_share, __sam_value_2));
        }
        ::core::result::Result::Ok(Self {
            logits: <Tensor as ::sam_runtime::Aux>::join_shards(__sam_0)?,
            loss: <Tensor as ::sam_runtime::LossOutput>::join_shards(__sam_1)?,
            more: <A as ::sam_runtime::Aux>::join_shards(__sam_2)?,
        })
    }
}
