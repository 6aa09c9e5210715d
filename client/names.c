/* SPDX-License-Identifier: Apache-2.0 */
/* What the library says about itself and its numbers. Pure functions, any thread. */
#include "client.h"

#include <string.h>

DCMEM_API uint32_t dcmem_abi_version(void)
{
	return DCMEM_ABI_VERSION;
}

DCMEM_API const char *dcmem_version(void)
{
	return DCMEM_VERSION;
}

DCMEM_API const char *dcmem_error(void)
{
	return message_get();
}

DCMEM_API const char *dcmem_strerror(int result)
{
	static const char *const texts[] = {
		[0] = "success",
		[DCMEM_E_NOT_FOUND] = "not found",
		[DCMEM_E_CORRUPT] = "damaged data",
		[DCMEM_E_UNSUPPORTED] = "not supported by this build",
		[DCMEM_E_INVALID] = "invalid argument",
		[DCMEM_E_NO_DAEMON] = "no daemon listens",
		[DCMEM_E_DISCONNECTED] = "the daemon went away",
		[DCMEM_E_BUDGET] = "does not fit the memory budget",
		[DCMEM_E_OVERDUE] = "leases are past their deadline",
		[DCMEM_E_DENIED] = "not allowed",
		[DCMEM_E_RETIRED] = "the model was unloaded",
		[DCMEM_E_FORKED] = "the handle belongs to the parent process",
		[DCMEM_E_EXISTS] = "exists already",
		[DCMEM_E_CHANGED] = "the model was replaced by another one",
		[DCMEM_E_PROTOCOL] = "protocol violation",
	};
	const char *text = NULL;

	if (result < 0)
		text = strerrordesc_np(-result);
	else if ((size_t)result < sizeof(texts) / sizeof(*texts))
		text = texts[result];
	return text ? text : "unknown error";
}

DCMEM_API const char *dcmem_dtype_name(uint32_t dtype)
{
	return dtype_name(dtype);
}

DCMEM_API size_t dcmem_dtype_bytes(uint32_t dtype)
{
	return dtype_bytes(dtype);
}

DCMEM_API const char *dcmem_codec_name(uint32_t codec)
{
	return codec_name(codec);
}

DCMEM_API void dcmem_free(void *memory)
{
	memory_free(memory);
}
