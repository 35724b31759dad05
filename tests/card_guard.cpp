// torch built for processors has no guard of CUDA devices, which slicing and autograd ask for: one that does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
    c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}  // namespace
