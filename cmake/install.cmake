include(CMakePackageConfigHelpers)
install(TARGETS moeref_simd moeref_quant moeref_layout moeref_engine moeref_io
        EXPORT moeref-targets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS moeref RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
foreach(folder simd quant layout engine io)
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/${folder}
          DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/moeref FILES_MATCHING PATTERN "*.hpp" PATTERN "*.inc")
endforeach()
install(EXPORT moeref-targets NAMESPACE moeref::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moeref)
configure_package_config_file(cmake/moeref-config.cmake.in moeref-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moeref)
write_basic_package_version_file(moeref-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moeref-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/moeref-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/moeref)
