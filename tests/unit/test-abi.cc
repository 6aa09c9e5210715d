// SPDX-License-Identifier: Apache-2.0
// dcmem.h in C++, the library by dlopen, and the ABI: sizes, offsets and numbers as they were set.
// Nothing here may change without a new ABI version. argv[1] is the library.
#include "dcmem/dcmem.h"

#include <cstdio>
#include <cstring>
#include <dlfcn.h>

static_assert(DCMEM_ABI_VERSION == 1, "");
static_assert(sizeof(struct dcmem_tensor) == 144, "");
static_assert(offsetof(struct dcmem_tensor, n_rows) == 88, "");
static_assert(offsetof(struct dcmem_tensor, n_companions) == 140, "");
static_assert(sizeof(struct dcmem_companion) == 24, "");
static_assert(sizeof(struct dcmem_options) == 24, "");
static_assert(sizeof(struct dcmem_hooks) == 40, "");
static_assert(sizeof(struct dcmem_read) == 80, "");
static_assert(offsetof(struct dcmem_read, dst) == 64, "");
static_assert(sizeof(struct dcmem_view) == 48, "");
static_assert(offsetof(struct dcmem_view, lease) == 32, "");
static_assert(sizeof(struct dcmem_file) == 16, "");
// Grown by what was appended: its first 48 bytes, which say their size, are still taken.
static_assert(offsetof(struct dcmem_counters, copied_bytes) == 48, "");
static_assert(sizeof(struct dcmem_counters) == 56, "");
static_assert(DCMEM_E_PROTOCOL == 14 && DCMEM_E_RETIRED == 10 && DCMEM_F64 == 15, "");

static const char *const symbols[] = {
	"dcmem_abi_version", "dcmem_acquire",	 "dcmem_close",	     "dcmem_codec_name",
	"dcmem_companion",   "dcmem_connect",	 "dcmem_counters",   "dcmem_disconnect",
	"dcmem_dtype_bytes", "dcmem_dtype_name", "dcmem_error",	     "dcmem_file",
	"dcmem_find",	     "dcmem_fingerprint", "dcmem_free",	     "dcmem_is_served",
	"dcmem_n_files",     "dcmem_n_tensors",	 "dcmem_open",	     "dcmem_prefetch",
	"dcmem_read",	     "dcmem_read_file",	 "dcmem_release",    "dcmem_request",
	"dcmem_set_hooks",   "dcmem_strerror",	 "dcmem_tensor",     "dcmem_version",
};

// Names of other rooms: seen from outside, they would clash with a program's own.
static const char *const hidden[] = {"memory_alloc", "message_set", "container_open", "index_find",
				     "wire_check", "codec_decode", "transport_request"};

int main(int argc, char **argv)
{
	void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
	int wrong = 0;

	if (!library) {
		std::fprintf(stderr, "cannot load the library: %s\n", dlerror());
		return 1;
	}
	for (const char *name : symbols) {
		if (!dlsym(library, name)) {
			std::fprintf(stderr, "%s is missing\n", name);
			wrong = 1;
		}
	}
	for (const char *name : hidden) {
		if (dlsym(library, name)) {
			std::fprintf(stderr, "%s is visible\n", name);
			wrong = 1;
		}
	}
	if (wrong)
		return 1;
	auto version = reinterpret_cast<uint32_t (*)()>(dlsym(library, "dcmem_abi_version"));
	auto open = reinterpret_cast<decltype(&dcmem_open)>(dlsym(library, "dcmem_open"));
	auto error = reinterpret_cast<decltype(&dcmem_error)>(dlsym(library, "dcmem_error"));
	struct dcmem *model = nullptr;
	if (version() != DCMEM_ABI_VERSION || open("/nonexistent.dcmem", nullptr, &model) >= 0 ||
	    model || !std::strstr(error(), "/nonexistent.dcmem")) {
		std::fprintf(stderr, "the loaded library does not work: %s\n", error());
		return 1;
	}
	return dlclose(library);
}
