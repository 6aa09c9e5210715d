/* SPDX-License-Identifier: Apache-2.0 */
/* Configurations: what is taken over, and that what is refused names file, key and reason. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <errno.h>
#include <cmocka.h>

#include "base/message.h"
#include "daemon/config.h"

static int parse(struct config *config, const char *text)
{
	assert_int_equal(config_init(config), 0);
	return config_parse(config, "some.json", text, strlen(text));
}

static void test_takes_over(void **state)
{
	struct config config;

	assert_int_equal(parse(&config, "{\"socket\":\"/a/b\",\"socket_mode\":\"0640\",\"budget\":"
					"\"3GiB\",\"chunk\":1048576,\"numa\":\"bind:3\",\"io\":"
					"\"epoll\",\"model_dirs\":[\"/x\",\"/y\"],\"models\":[{"
					"\"path\":\"/x/m\",\"name\":\"n\"},{\"path\":\"/x/o\"}]}"),
			 0);
	assert_string_equal(config.socket, "/a/b");
	assert_int_equal(config.socket_mode, 0640);
	assert_true(config.store.budget_bytes == 3221225472ULL);
	assert_int_equal(config.store.chunk_bytes, 1048576);
	assert_int_equal(config.store.numa, STORE_NUMA_BIND);
	assert_int_equal(config.store.numa_node, 3);
	assert_int_equal(config.io, LOOP_IO_EPOLL);
	assert_int_equal(config.n_model_dirs, 2);
	assert_string_equal(config.model_dirs[1], "/y");
	assert_int_equal(config.n_models, 2);
	assert_string_equal(config.models[0].name, "n");
	assert_null(config.models[1].name);
	assert_int_equal(config_check(&config), 0);
	config_deinit(&config);
}

static void test_refuses(void **state)
{
	static const struct {
		const char *text, *key, *reason;
	} cases[] = {
		{"{\"budgett\":1}", "\"budgett\"", "unknown key"},
		{"{\"budget\":\"4 GiB\"}", "\"budget\"", "unknown unit"},
		{"{\"budget\":\"101%\"}", "\"budget\"", "between"},
		{"{\"budget\":\"99999999999TiB\"}", "\"budget\"", "too large"},
		{"{\"budget\":-1}", "\"budget\"", "negative"},
		{"{\"max_clients\":0}", "\"max_clients\"", "from 1"},
		{"{\"workers\":1.5}", "\"workers\"", "whole number"},
		{"{\"huge_pages\":1}", "\"huge_pages\"", "true or false"},
		{"{\"socket\":\"/a\\u0000b\"}", "\"socket\"", ""},
		{"{\"models\":[{\"path\":\"/a\",\"x\":1}]}", "\"models\"", "unknown key"},
		{"{\"models\":[{\"path\":\"/a\",\"pin\":\"soft\"}]}", "\"models\"", "raw, fast, work"},
		{"{\"models\":[{\"path\":\"/a\",\"weight\":-1}]}", "\"models\"", "weight"},
		{"{\"models\":[{\"path\":\"/a\",\"floor\":\"raw\",\"ceiling\":\"work\"}]}", "\"models\"",
		 "faster than its ceiling"},
		{"{\"objective\":\"speed\"}", "\"objective\"", "not latency"},
		{"{\"background\":0}", "\"background\"", "1"},
		{"{\"io\":\"iocp\"}", "\"io\"", "not auto"},
		{"{\"numa\":\"bind:\"}", "\"numa\"", "node"},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct config config;

		assert_true(parse(&config, cases[i].text) < 0);
		assert_non_null(strstr(message_get(), "some.json"));
		if (!strstr(cases[i].text, "u0000"))
			assert_non_null(strstr(message_get(), cases[i].key));
		assert_non_null(strstr(message_get(), cases[i].reason));
		config_deinit(&config);
	}
}

static void test_policies(void **state)
{
	struct config config;

	assert_int_equal(parse(&config, "{\"objective\":\"memory\",\"background\":10,\"models\":"
					"[{\"path\":\"/a\"},{\"path\":\"/b\",\"weight\":2.5,\"pin\":\"raw\","
					"\"limit\":\"1MiB\",\"frozen\":true},{\"path\":\"/c\","
					"\"floor\":\"work\",\"ceiling\":\"fast\"}]}"), 0);
	assert_true(config.store.tune);
	assert_int_equal(config.store.objective, PLANNER_MEMORY);
	assert_int_equal(config.store.background, 10);
	assert_true(config.models[0].policy.weight == 1);
	assert_int_equal(config.models[0].policy.pin, PLANNER_NO_CLASS);
	assert_int_equal(config.models[0].policy.floor, PLANNER_DENSE);
	assert_true(config.models[1].policy.weight == 2.5F);
	assert_int_equal(config.models[1].policy.pin, PLANNER_RAW);
	assert_int_equal(config.models[1].policy.max_bytes, 1 << 20);
	assert_true(config.models[1].policy.frozen);
	assert_int_equal(config.models[2].policy.floor, PLANNER_WORK);
	assert_int_equal(config.models[2].policy.ceiling, PLANNER_FAST);
	config_deinit(&config);
	assert_int_equal(parse(&config, "{\"objective\":\"off\"}"), 0);
	assert_false(config.store.tune);
	config_deinit(&config);
}

static void test_sizes(void **state)
{
	uint64_t bytes = 5;

	assert_int_equal(config_set_bytes(&bytes, "x", "18446744073709551616"), -EINVAL);
	assert_int_equal(config_set_bytes(&bytes, "x", "17179869184GiB"), -ERANGE);
	assert_int_equal(config_set_bytes(&bytes, "x", ""), -EINVAL);
	assert_int_equal(bytes, 5);
	assert_int_equal(config_set_bytes(&bytes, "x", "1536KiB"), 0);
	assert_int_equal(bytes, 1572864);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_takes_over),
		cmocka_unit_test(test_refuses),
		cmocka_unit_test(test_policies),
		cmocka_unit_test(test_sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
