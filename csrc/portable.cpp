// For wheels (MMFAST_STUBS): what the headers of GCC 11 and newer ask of a libstdc++ and a glibc that are newer than
// manylinux_2_28's. Hidden, and made of what the older ones have.
#define MMFAST_HIDDEN __attribute__((visibility("hidden")))

extern "C" {
// glibc 2.32: whether the process has one thread only, for which counts of references need no atomics. It has more.
MMFAST_HIDDEN char __libc_single_threaded = 0;

[[noreturn]] void __cxa_throw_bad_array_new_length();
// The versions are named, so that these are the library's own even where a copy was compiled from a header.
void mmfast_copy(void* to, const void* from) noexcept;
void mmfast_end(void* pointer) noexcept;
__asm__(".symver mmfast_copy, _ZNSt15__exception_ptr13exception_ptrC1ERKS0_@CXXABI_1.3.3");
__asm__(".symver mmfast_end, _ZNSt15__exception_ptr13exception_ptrD1Ev@CXXABI_1.3.3");

// std::__throw_bad_array_new_length, of GLIBCXX 3.4.29
MMFAST_HIDDEN [[noreturn]] void _ZSt28__throw_bad_array_new_lengthv() { __cxa_throw_bad_array_new_length(); }
// std::exception_ptr's _M_addref and _M_release, of CXXABI 1.3.13: a copy that never ends; an end of the pointer itself.
MMFAST_HIDDEN void _ZNSt15__exception_ptr13exception_ptr9_M_addrefEv(void* self) noexcept {
  void* copy;
  mmfast_copy(&copy, self);
}
MMFAST_HIDDEN void _ZNSt15__exception_ptr13exception_ptr10_M_releaseEv(void* self) noexcept { mmfast_end(self); }
}
