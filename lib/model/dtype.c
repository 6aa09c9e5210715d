/* SPDX-License-Identifier: Apache-2.0 */
/* The table of dtypes: element sizes and their names in safetensors. */
#include <string.h>

#include "dcmem/dcmem.h"
#include "model/index.h"

static const struct {
	const char *name;
	uint32_t n_bytes;
} dtypes[] = {
	[DCMEM_BOOL] = {"BOOL", 1}, [DCMEM_U8] = {"U8", 1},	    [DCMEM_I8] = {"I8", 1},
	[DCMEM_F8_E4M3] = {"F8_E4M3", 1}, [DCMEM_F8_E5M2] = {"F8_E5M2", 1},
	[DCMEM_I16] = {"I16", 2},   [DCMEM_F16] = {"F16", 2},	    [DCMEM_BF16] = {"BF16", 2},
	[DCMEM_I32] = {"I32", 4},   [DCMEM_F32] = {"F32", 4},	    [DCMEM_I64] = {"I64", 8},
	[DCMEM_U16] = {"U16", 2},   [DCMEM_U32] = {"U32", 4},	    [DCMEM_U64] = {"U64", 8},
	[DCMEM_F64] = {"F64", 8},
};
#define N_DTYPES (sizeof(dtypes) / sizeof(dtypes[0]))

uint32_t dtype_bytes(uint32_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].n_bytes : 0;
}

const char *dtype_name(uint32_t dtype)
{
	return dtype < N_DTYPES ? dtypes[dtype].name : NULL;
}

uint32_t dtype_from_name(const char *name)
{
	for (uint32_t i = 1; i < N_DTYPES; i++) {
		if (strcmp(dtypes[i].name, name) == 0)
			return i;
	}
	return 0;
}
