// Input
//
//     struct Metrics<'a, T: Clone, const N: usize>
//     where
//         T: 'a,
//     {
//         name: &'a str,
//         r#type: [T; N],
//     }
//
// Output

#[automatically_derived]
impl<'a, T: Clone + ::sam_runtime::Aux, const N: usize> ::sam_runtime::Aux
for Metrics<'a, T, N>
where
    T: 'a,
{
    fn detached(self) -> ::sam_runtime::__private::candle_core::Result<Self> {
        ::core::result::Result::Ok(
            match self {
                Self { name: __sam_0, r#type: __sam_1 } => {
                    Self {
                        name: <&'a str as ::sam_runtime::Aux>::detached(__sam_0)?,
                        r#type: <[T; N] as ::sam_runtime::Aux>::detached(__sam_1)?,
                    }
                }
            },
        )
    }
    fn join_shards(
        __sam_parts: ::std::vec::Vec<(::core::primitive::f64, Self)>,
    ) -> ::sam_runtime::__private::candle_core::Result<Self> {
        let mut __sam_0 = ::std::vec::Vec::new();
        let mut __sam_1 = ::std::vec::Vec::new();
        for (__sam_share, __sam_part) in __sam_parts {
            let Self { name: __sam_value_0, r#type: __sam_value_1 } = __sam_part;
            ::std::vec::Vec::push(&mut __sam_0, (__sam_share, __sam_value_0));
            ::std::vec::Vec::push(&mut __sam_1, (__sam_share, __sam_value_1));
        }
        ::core::result::Result::Ok(Self {
            name: <&'a str as ::sam_runtime::Aux>::join_shards(__sam_0)?,
            r#type: <[T; N] as ::sam_runtime::Aux>::join_shards(__sam_1)?,
        })
    }
}
